"""Who may use the REST door: programs that know a token, where there is one, and no web page of another site.

On loopback every local program is trusted, and a web page is not: its browser says where it comes from (`Origin`,
`Sec-Fetch-Site`), and a name that somebody pointed at this machine shows in `Host` (DNS rebinding). WebSocket upgrades
pass the same checks, for browsers let any page open one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Collection, Sequence

from aiohttp import web

from bridge.api.rest.operations import Handler, Middleware, declared
from bridge.contract import ForeignOrigin, Unauthorized
from bridge.settings import Settings, is_loopback

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
CLIENT = web.RequestKey("client", str)
"""Who asks: `token 1`, or an address. Limits go by it, and the log names it."""
AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
ORIGIN = re.compile(r"https?://(?P<authority>.+)")
BROWSABLE_PATHS = ("/docs", "/openapi.json")
"""What a person opens in a browser, which knows names and passwords but no bearer tokens."""
OTHER_SITES = ("cross-site", "same-site")
"""Sec-Fetch-Site of pages that are not ours; `same-site` is another port of this machine, or a sister domain."""


def own_hosts(settings: Settings) -> Collection[str] | None:
    """The names by which the service may be addressed; None: any.

    With a token on a wider address nobody can list them in advance, and a stranger's page does not know the token.
    """
    if settings.allowed_hosts:
        return {*LOOPBACK_NAMES, *(host.lower().strip("[]") for host in settings.allowed_hosts)}
    if is_loopback(settings.host):
        return {*LOOPBACK_NAMES, settings.host.lower()}
    return None


def same_origin(hosts: Collection[str] | None) -> Middleware:
    """Refuse browsers that come from another site's page. `hosts` as `own_hosts` gives them."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.getall("Host", [])
        match = AUTHORITY.fullmatch(given[0]) if len(given) == 1 else None
        if match is None:
            raise ForeignOrigin(f"the Host of the request is not one address: {', '.join(given) or 'none'}")
        host = match["host"].strip("[]").lower().removesuffix(".")
        if hosts is not None and host not in hosts:
            names = ", ".join(sorted(hosts))
            raise ForeignOrigin(f"this service is not called {host}; use {names}, or set IMAGEGEN_ALLOWED_HOSTS")
        _check_origin(request, given[0])
        return await handler(request)

    return middleware


def _check_origin(request: web.Request, host: str) -> None:
    for origin in request.headers.getall("Origin", []):
        match = ORIGIN.fullmatch(origin)
        if match is None or match["authority"].lower() != host.lower():
            raise ForeignOrigin(f"requests from pages of {origin} are refused; this service answers programs")
    # An image or a script of another site is asked for without an Origin.
    if request.headers.get("Sec-Fetch-Site", "").lower() in OTHER_SITES and not _is_link(request):
        raise ForeignOrigin("requests from pages of other sites are refused; this service answers programs")


def _is_link(request: web.Request) -> bool:
    """Somebody followed a link: the answer is shown alone in its window, and the page with the link cannot read it."""
    wanted = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    return request.method == "GET" and all(request.headers.get(name) == value for name, value in wanted.items())


class Tokens:
    """The tokens that are valid. Comparing takes as long for a wrong one as for a right one."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def number(self, given: bytes) -> int | None:
        """Which of the tokens was given, counted from 1."""
        digest = hashlib.sha256(given).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return matches.index(True) + 1 if True in matches else None

    def of(self, request: web.Request) -> int | None:
        """The number of the token that a request carries."""
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        given = value.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() == "bearer":
            return self.number(given)
        if scheme.lower() == "basic" and request.path.startswith(BROWSABLE_PATHS):
            try:
                return self.number(base64.b64decode(given, validate=True).partition(b":")[2])
            except (binascii.Error, ValueError):
                return None
        return None


def identify(tokens: Tokens) -> Middleware:
    """Note who asks, for the limits and the log."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        number = tokens.of(request) if tokens else None
        request[CLIENT] = f"token {number}" if number else address(request)
        return await handler(request)

    return middleware


def address(request: web.Request) -> str:
    """The client's address; of IPv6 the network, for a machine has as many addresses there as it likes."""
    text = request.remote or "unknown"
    if ":" not in text:
        return text
    groups = text.partition("%")[0].split(":")
    return text if text.startswith("::") else ":".join(groups[:4]) + "::/64"


def bearer_token(tokens: Tokens) -> Middleware:
    """Demand `Authorization: Bearer <token>` of everything that is not open."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        operation = declared(request.match_info.handler)
        is_open = operation is not None and operation.open
        if tokens and not is_open and not request[CLIENT].startswith("token "):
            raise Unauthorized("this service needs the header 'Authorization: Bearer <token>' with its token")
        return await handler(request)

    return middleware


def challenge(request: web.Request) -> str:
    """The WWW-Authenticate of a 401. A browser asks its user for name and password where it is told Basic."""
    browsable = request.path.startswith(BROWSABLE_PATHS)
    return 'Basic realm="imagegen: any name, the token as password"' if browsable else 'Bearer realm="imagegen"'
