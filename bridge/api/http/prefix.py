"""The path under which a proxy serves the service: `/images` where clients ask for `/images/v1/jobs`.

The proxy may remove it from the path or not; both are served. What the service says about its own paths (`Location`,
`Content-Location`, OpenAPI's `servers`) starts with it.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from yarl import URL

from bridge.api.http.operations import Handler
from bridge.contract import BridgeError, shown
from bridge.settings import PATH_PREFIX, Settings

HEADER = "X-Forwarded-Prefix"
SETTINGS = web.AppKey("settings_of_prefix", Settings)


class BadPrefix(BridgeError):
    """The proxy's header holds no path."""

    status, code = 400, "bad_prefix"


def prefix_of(request: web.Request) -> str:
    """The path in front of every path of the service, without a slash at its end; empty: none. Raises BadPrefix."""
    settings = request.app[SETTINGS]
    given = request.headers.getall(HEADER, []) if settings.forwarded_prefix else []
    if not given:
        return settings.root_path
    path = given[0].rstrip("/")
    if len(given) > 1 or (path and not PATH_PREFIX.fullmatch(path)):
        raise BadPrefix(
            f"the header {HEADER} is {shown(', '.join(given))}; the proxy must send one path such as /images"
        )
    return path


@web.middleware
async def checked_prefix(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a bad header before anything is done, such as queueing the job that an answer would name."""
    prefix_of(request)
    return await handler(request)


def without_prefix(message: Any, settings: Settings) -> Any:
    """A parsed request with its prefix removed from the path, where it has one; aiohttp looks for routes after that."""
    prefixes = [settings.root_path] if settings.root_path else []
    if settings.forwarded_prefix and PATH_PREFIX.fullmatch(path := message.headers.get(HEADER, "").rstrip("/")):
        prefixes.insert(0, path)
    raw = message.url.raw_path
    for prefix in prefixes:
        if raw == prefix or raw.startswith(prefix + "/"):
            url = URL.build(
                path=raw.removeprefix(prefix) or "/", query_string=message.url.raw_query_string, encoded=True
            )
            return message._replace(path=str(url), url=url)
    return message
