"""The connections to one service: HTTP requests and the WebSocket of a job's events. Every failure is a ClientError."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import aiohttp
from pydantic import ValidationError
from yarl import URL

from bridge import tracing
from bridge.client.errors import (
    AnswerTimeout,
    BadUrl,
    ClientError,
    ServiceUnreachable,
    UnexpectedAnswer,
    Unsendable,
)
from bridge.contract import Answer, ErrorEnvelope, read_answer

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 30.0
"""How long the service may send nothing. A long answer that keeps arriving takes as long as it takes."""
HEARTBEAT_S = 20.0
"""A WebSocket that leaves a ping unanswered this long is dead: the machine slept, or a network went away."""
CLOSE_TIMEOUT_S = 2.0
HTML = "text/html"
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:($|//)")


class Transport:
    """One service at `url`. A function instead of a URL is called before every request: a restarted service may have
    moved. Use it from one event loop."""

    def __init__(self, url: str | Callable[[], str], token: str | None) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """Where the service is, without a slash at the end."""
        return (self._url if isinstance(self._url, str) else self._url()).rstrip("/")

    async def close(self) -> None:
        """Close all connections. The next request opens new ones."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send a request and return the body of the answer. Raises ClientError."""
        base = _checked(self.url)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s)
        try:
            async with self._open().request(
                method,
                base + path,
                params=_query(query or {}),
                json=body,
                headers={**tracing.headers(), **self._headers, **(headers or {})},
                timeout=timeout,
            ) as answer:
                data = await answer.read()
                if not answer.ok:
                    raise _refusal(answer, data, base, path)
                if answer.content_type == HTML:  # A proxy's page, or that of another program.
                    raise UnexpectedAnswer(answer.status, base, path)
                return data
        except aiohttp.ConnectionTimeoutError as error:
            raise ServiceUnreachable(base) from error
        except TimeoutError as error:
            raise AnswerTimeout(base, path, timeout_s) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServiceUnreachable(base) from error
        except (ValueError, TypeError) as error:  # a line end in a header, a value that JSON has no word for
            raise Unsendable(str(error)) from error

    async def ask(self, model: type[Answer], method: str, path: str, **options: Any) -> Answer:
        """`request`, with the answer read as `model`. Fields that this version does not know are left out."""
        data = await self.request(method, path, **options)
        try:
            return read_answer(model, data)
        except ValidationError as error:
            raise UnexpectedAnswer(200, self.url, path) from error

    async def open_events(self, job_id: str, *, previews: bool) -> aiohttp.ClientWebSocketResponse:
        """Open the event stream of a job; each text frame is a `JobEvent`. Raises ServiceUnreachable, BadUrl."""
        base = _checked(self.url)
        path = f"/v1/jobs/{quote(job_id, safe='')}/events" + ("?previews=true" if previews else "")
        try:
            return await self._open().ws_connect(
                base + path,
                headers=self._headers,
                heartbeat=HEARTBEAT_S,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),  # pyright: ignore[reportCallIssue] - attrs
                max_msg_size=0,  # a preview may be larger than aiohttp's limit
            )
        except (aiohttp.ClientError, OSError) as error:
            raise ServiceUnreachable(base) from error
        except ValueError as error:
            raise Unsendable(str(error)) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            handshake = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=CONNECT_TIMEOUT_S)
            # No proxy from the environment: it would take requests for this machine away from it.
            self._session = aiohttp.ClientSession(trust_env=False, timeout=handshake)
        return self._session


def _query(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _refusal(answer: aiohttp.ClientResponse, data: bytes, url: str, path: str) -> ClientError:
    retry_after_s = _retry_after_s(answer.headers.get("Retry-After", ""))
    try:
        body = read_answer(ErrorEnvelope, data).error
    except ValidationError:
        return UnexpectedAnswer(answer.status, url, path, retry_after_s)
    return ClientError(answer.status, body, retry_after_s)


def _retry_after_s(text: str) -> float | None:
    """The seconds of a Retry-After header, which holds a number or a date (RFC 9110, 10.2.3); None for any other."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _checked(url: str) -> str:
    """The URL, if it is one. Raises BadUrl."""
    try:
        parsed = URL(url)
        usable = parsed.scheme in ("http", "https") and bool(parsed.host) and bool(parsed.port)
    except (ValueError, TypeError) as error:
        raise BadUrl(url, f"cannot be read: {error}") from error
    if not usable and not SCHEME.match(url):
        raise BadUrl(url, f"has no scheme; write http://{url.lstrip('/') or '127.0.0.1:8005'}")
    if not usable:
        raise BadUrl(url, "is not an http or https URL; write it like http://127.0.0.1:8005")
    return url
