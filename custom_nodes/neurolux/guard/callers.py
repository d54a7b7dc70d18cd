"""Who may call: decides by a request's headers whether a foreign web page sent it. Pure, without aiohttp.

Programs send neither `Origin` nor `Sec-Fetch-Site` and pass. A browser sends both, and a page cannot change them. Three
ways lead from a page to a server on loopback: DNS rebinding, whose `Host` is the attacker's name; another origin, which
`Origin` names, or `null` for a sandboxed frame; and requests without `Origin`, such as those of `<img>`, which
`Sec-Fetch-Site` gives away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from .addresses import Address, read_host, read_origin
from .settings import HOSTS_VARIABLE, GuardSettings

OWN_SITES = ("same-origin", "none")
"""`none`: a person typed the address, or opened a bookmark."""
PAGE = "/"
"""The editor. A link on any page may lead to it; it does nothing by itself, and cannot be framed."""


class Headers(Protocol):
    """What `aiohttp`'s headers give."""

    def getall(self, key: str, default: list[str], /) -> list[str]: ...


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused. `code` is for programs, the message for people."""

    status: int
    code: str
    message: str


def refused(settings: GuardSettings, method: str, path: str, headers: Headers) -> Refusal | None:
    """Why this request must not be answered; None if it may."""
    hosts = headers.getall("Host", [])
    if len(hosts) > 1:
        return Refusal(400, "bad_host", "the request has more than one Host header")
    host = read_host(hosts[0]) if hosts else None
    if not settings.any_host and (
        host is None or not (host.loopback or any(entry.covers_host(host) for entry in settings.allowed))
    ):
        named = repr(hosts[0][:200]) if hosts else "missing"
        return Refusal(
            403,
            "foreign_host",
            f"this ComfyUI is not known under the Host {named}; if that is its name, as behind a proxy, start ComfyUI "
            f"with {HOSTS_VARIABLE} set to the name",
        )
    origins = headers.getall("Origin", [])
    sites = [site.strip().lower() for site in headers.getall("Sec-Fetch-Site", [])]
    for origin in origins:
        if not _own_origin(settings, host, origin, sites, headers):
            return Refusal(
                403,
                "foreign_origin",
                f"a page of {origin[:200]!r} must not use this ComfyUI; if you trust it, add its address to "
                f"{HOSTS_VARIABLE}",
            )
    if settings.any_origin or origins and all(_listed(settings, origin) for origin in origins):
        return None
    if not all(site in OWN_SITES for site in sites) and not _opens_the_editor(method, path, headers):
        return Refusal(
            403,
            "cross_site",
            f"a page of another site (Sec-Fetch-Site: {', '.join(sites)[:200]}) must not use this ComfyUI",
        )
    return None


def _own_origin(
    settings: GuardSettings, host: Address | None, text: str, sites: Iterable[str], headers: Headers
) -> bool:
    """Whether the page is ComfyUI's own, or one that the user has allowed."""
    if settings.any_origin:
        return True
    origin = read_origin(text)
    if origin is None:
        return False
    if any(entry.covers_origin(origin) for entry in settings.allowed):
        return True
    if host is not None and host.same_origin(origin):
        return True
    if not settings.any_host:
        return False
    # On a network a proxy may have changed Host. A foreign page can forge neither of these two.
    forwarded = (read_host(text) for text in headers.getall("X-Forwarded-Host", []))
    return any(name is not None and name.same_origin(origin) for name in forwarded) or list(sites) == ["same-origin"]


def _listed(settings: GuardSettings, origin: str) -> bool:
    address = read_origin(origin)
    return address is not None and any(entry.covers_origin(address) for entry in settings.allowed)


def _opens_the_editor(method: str, path: str, headers: Headers) -> bool:
    """Whether a person followed a link to the editor."""
    return (
        method in ("GET", "HEAD")
        and path == PAGE
        and headers.getall("Sec-Fetch-Mode", []) == ["navigate"]
        and headers.getall("Sec-Fetch-Dest", []) == ["document"]
    )
