"""Who may use the REST API: programs that know a token, if there is one, and no web page of another site.

On loopback every local program is trusted. Web pages are not: the browser reports where a request comes from (`Origin`,
`Sec-Fetch-Site`), and a foreign name that points at this machine shows in `Host` (DNS rebinding). WebSocket upgrades
pass the same checks, because browsers let any page open one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Collection, Sequence

from aiohttp import web

from bridge.api.http.cors import ALLOWED_ORIGIN
from bridge.api.http.operations import Handler, Middleware, declared
from bridge.contract import ForeignOrigin, Unauthorized, shorten
from bridge.settings import Settings, is_loopback

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
CLIENT = web.RequestKey("client", str)
"""The client: `token 1`, or an address. Rates apply to it, and the log names it."""
AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<authority>.+)", re.IGNORECASE)
DEFAULT_PORTS = {"http": 80, "https": 443}
BROWSABLE_PATHS = ("/docs", "/openapi.json")
"""Pages for a browser, which can send a user name and password but no bearer token."""
OTHER_SITES = ("cross-site", "same-site")
"""Sec-Fetch-Site of pages of other sites; `same-site` is another port of this machine, or a sister domain."""


def own_hosts(settings: Settings) -> Collection[str] | None:
    """The host names that clients may use; None: any.

    On a wider address the names cannot be known in advance, and the token protects the service from foreign pages.
    """
    if settings.allowed_hosts:
        return {*LOOPBACK_NAMES, *(host.lower().strip("[]") for host in settings.allowed_hosts)}
    if is_loopback(settings.host):
        return {*LOOPBACK_NAMES, settings.host.lower()}
    return None


def same_origin(hosts: Collection[str] | None, origins: Collection[str] = ()) -> Middleware:
    """Refuse requests from web pages of other sites, except those of `origins`. `hosts` are those of `own_hosts`."""
    allowed = {_origin(origin) for origin in origins} - {None}

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.getall("Host", [])
        match = AUTHORITY.fullmatch(given[0]) if len(given) == 1 else None
        if match is None:
            raise ForeignOrigin(f"the Host header is not one address: {shorten(', '.join(given)) or 'none'}")
        host = match["host"].strip("[]").lower().removesuffix(".")
        if hosts is not None and host not in hosts:
            names = ", ".join(sorted(hosts))
            raise ForeignOrigin(
                f"this service is not called {shorten(host)}; use {names}, or set IMAGEGEN_ALLOWED_HOSTS"
            )
        origin = request.headers.getall("Origin", [])
        if len(origin) == 1 and allowed and _origin(origin[0]) in allowed:
            request[ALLOWED_ORIGIN] = origin[0]
        else:
            _check_origin(request, given[0])
        return await handler(request)

    return middleware


def _check_origin(request: web.Request, host: str) -> None:
    for origin in request.headers.getall("Origin", []):
        if not is_same_origin(origin, host):
            raise ForeignOrigin(
                f"requests from web pages of {shorten(origin)} are refused; this service answers programs"
            )
    # Browsers send no Origin with requests for images and scripts.
    if request.headers.get("Sec-Fetch-Site", "").lower() in OTHER_SITES and not _is_link(request):
        raise ForeignOrigin("requests from web pages of other sites are refused; this service answers programs")


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the host of the Host header, which lacks a port where it is the scheme's own."""
    match = ORIGIN.fullmatch(origin)
    if match is None:
        return False
    own = _place(match["authority"], match["scheme"])
    return own is not None and own == _place(host, match["scheme"])


def _origin(text: str) -> tuple[str, tuple[str, int]] | None:
    """Scheme, host and port of an origin; None for a text that is none. `null` is none."""
    match = ORIGIN.fullmatch(text)
    place = match and _place(match["authority"], match["scheme"])
    return (match["scheme"].lower(), place) if match and place else None


def _place(authority: str, scheme: str) -> tuple[str, int] | None:
    """Host and port."""
    match = AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    return match["host"].lower().removesuffix("."), int(match["port"] or DEFAULT_PORTS[scheme.lower()])


def _is_link(request: web.Request) -> bool:
    """Whether the user followed a link: the page with the link cannot read the answer."""
    wanted = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    return request.method == "GET" and all(request.headers.get(name) == value for name, value in wanted.items())


class Tokens:
    """The valid tokens. Comparing takes the same time for a wrong token as for a right one."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def number(self, given: bytes) -> int | None:
        """The number of the given token, counted from 1; None for a wrong one."""
        digest = hashlib.sha256(given).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return matches.index(True) + 1 if True in matches else None

    def of(self, request: web.Request) -> int | None:
        """The number of the token in a request."""
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
    """Identify the client, for the limits and the log."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        number = tokens.of(request) if tokens else None
        request[CLIENT] = f"token {number}" if number else address(request)
        return await handler(request)

    return middleware


def address(request: web.Request) -> str:
    """The client's address; for IPv6 its /64 network, because a machine can use any address in it."""
    text = request.remote or "unknown"
    if ":" not in text:
        return text
    groups = text.partition("%")[0].split(":")
    return text if text.startswith("::") else ":".join(groups[:4]) + "::/64"


def bearer_token(tokens: Tokens) -> Middleware:
    """Require `Authorization: Bearer <token>`, except for open endpoints."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        operation = declared(request.match_info.handler)
        is_open = operation is not None and operation.open
        if tokens and not is_open and not request[CLIENT].startswith("token "):
            raise Unauthorized("this service requires the header 'Authorization: Bearer <token>'")
        return await handler(request)

    return middleware


def challenge(request: web.Request) -> str:
    """The WWW-Authenticate header of a 401. With Basic, a browser asks its user for a name and password."""
    browsable = request.path.startswith(BROWSABLE_PATHS)
    return 'Basic realm="imagegen: any name, the token as password"' if browsable else 'Bearer realm="imagegen"'
