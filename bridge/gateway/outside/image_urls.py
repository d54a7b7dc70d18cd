"""Images that a request names by URL. With one a stranger makes this machine send a request, so the guard is that of
webhooks (`callback_address`): only listed hosts, only public addresses, and a connection only to an address that was
checked. Each redirect is checked like the first URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
from yarl import URL

from bridge import __version__
from bridge.gateway.outside.callback_address import AddressRefused, CallbackPolicy, CheckedResolver
from bridge.modes.images_in import BadImage

SCHEMES = ("https", "http")
ANY_HOST = "*"
MAX_URL_CHARS = 2000
MAX_REDIRECTS = 3
TIMEOUT_S = 20.0
"""For the whole image, redirects included."""
AT_ONCE = 8
"""Images that one gateway fetches at the same time."""
CHUNK_BYTES = 64 * 1024
HEADERS = {
    "Accept": "image/png, image/jpeg, image/webp",
    "Accept-Encoding": "identity",
    "User-Agent": f"neurolux-imagegen/{__version__}",
}
REDIRECTS = (301, 302, 303, 307, 308)


def is_url(value: object) -> bool:
    """Whether a value names an image by URL."""
    return isinstance(value, str) and value[:8].lower().startswith(("https://", "http://"))


class ImageUrls:
    """Fetches images for one gateway. Without `hosts` it fetches none; `*` among them is every host."""

    def __init__(
        self, hosts: Sequence[str] = (), *, max_bytes: int, allow_private: bool = False, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._hosts = [host.lower().rstrip(".") for host in hosts]
        self._max_bytes = max_bytes
        self._policy = CallbackPolicy(allow_private=allow_private, setting="IMAGEGEN_IMAGE_URLS_ALLOW_PRIVATE")
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def fetch(self, text: str) -> bytes:
        """The bytes at a URL. Whether they are an image is not known yet. Raises BadImage."""
        shown = text if len(text) <= 100 else text[:100] + "…"
        if not self._hosts:
            raise BadImage(
                f"{shown!r} is a URL, and this service fetches no images (IMAGEGEN_IMAGE_URLS); send the image itself"
            )
        if len(text) > MAX_URL_CHARS:
            raise BadImage(f"is a URL of {len(text)} characters; at most {MAX_URL_CHARS} are allowed")
        try:
            async with self._turns, asyncio.timeout(self._timeout_s):
                return await self._follow(text)
        except TimeoutError:
            raise BadImage(f"{shown!r} was not there within {self._timeout_s:g} s; send the image itself") from None
        except BadImage:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            raise BadImage(f"{shown!r} cannot be fetched: {cause or type(error).__name__}") from error

    async def _follow(self, text: str) -> bytes:
        connector = aiohttp.TCPConnector(resolver=CheckedResolver(self._policy), use_dns_cache=False)
        # Cookies of one host would travel to the next by redirect.
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(
            connector=connector, cookie_jar=jar, trust_env=False, auto_decompress=False
        ) as session:
            url = self._checked(URL(text))
            for _ in range(MAX_REDIRECTS + 1):
                await self._check_address(url)
                async with session.get(url, headers=HEADERS, allow_redirects=False) as answer:
                    if answer.status in REDIRECTS and "Location" in answer.headers:
                        url = self._checked(url.join(URL(answer.headers["Location"])))
                        continue
                    if answer.status != 200:
                        raise BadImage(f"cannot be fetched: {url.host} answers with HTTP {answer.status}")
                    return await self._read(answer)
        raise BadImage(f"cannot be fetched: more than {MAX_REDIRECTS} redirects")

    def _checked(self, url: URL) -> URL:
        """The URL, if it may be fetched. Raises BadImage."""
        if url.scheme not in SCHEMES or not url.host:
            raise BadImage(f"is not an http or https URL: {url.scheme or 'none'}")
        if url.user is not None or url.password is not None:
            raise BadImage("is a URL with a user name or a password; leave them out")
        host = url.host.lower().rstrip(".")
        if not any(_matches(host, known) for known in self._hosts):
            raise BadImage(f"is on {host}, from which this service fetches no images (IMAGEGEN_IMAGE_URLS)")
        return url

    async def _check_address(self, url: URL) -> None:
        # aiohttp does not call the resolver for a host that is an address.
        try:
            await self._policy.addresses(url.host or "", url.port or 0)
        except AddressRefused as error:
            raise BadImage(f"cannot be fetched: {error}") from error

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        """The body, which may not be longer than an image in a request."""
        announced = answer.content_length
        if announced is not None and announced > self._max_bytes:
            raise BadImage(f"has {announced} bytes; at most {self._max_bytes} are allowed")
        if (encoding := answer.headers.get("Content-Encoding", "identity").lower()) != "identity":
            raise BadImage(f"cannot be fetched: its server sends it encoded ({encoding[:20]!r})")
        data = bytearray()
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            data += chunk
            if len(data) > self._max_bytes:
                raise BadImage(f"has more than {self._max_bytes} bytes, which is the limit")
        return bytes(data)


def _matches(host: str, known: str) -> bool:
    """Whether a listed name covers a host: the name itself, `*.name` for all below it, or `*`."""
    return known in (ANY_HOST, host) or (known.startswith("*.") and host.endswith(known[1:]))
