"""Reads the `Host` and `Origin` of a request. Pure: neither aiohttp nor ComfyUI.

It knows the canonical spellings that browsers send, and takes any other for a name that nobody has allowed.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^\s\[\]:/@?#\\,]+)(?::(?P<port>[0-9]{0,5}))?", re.ASCII)
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """A host name in lower case or a canonical IP address, and what else was given: a port, an origin's scheme."""

    host: str
    port: int | None = None
    scheme: str | None = None

    @property
    def loopback(self) -> bool:
        """Whether it can only be this machine. Names under `localhost` never go to a name server."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback

    def same_origin(self, origin: Address) -> bool:
        """Whether a page of `origin` belongs to the server at this `Host`, which may have no port behind a proxy."""
        return self.host == origin.host and (self.port or origin.default_port) == (origin.port or origin.default_port)

    @property
    def default_port(self) -> int | None:
        """The port of an origin that names none."""
        return _DEFAULT_PORTS.get(self.scheme or "")

    def covers_host(self, host: Address) -> bool:
        """Whether this entry of an allow list includes a `Host`: what the entry leaves open may be anything."""
        return self.host == host.host and self.port in (None, host.port or self.default_port)

    def covers_origin(self, origin: Address) -> bool:
        """Whether this entry of an allow list includes an `Origin`."""
        return (
            self.host == origin.host
            and self.port in (None, origin.port or origin.default_port)
            and self.scheme in (None, origin.scheme)
        )


def read_host(text: str) -> Address | None:
    """The address in a `Host` header; None if it is not one."""
    match = _AUTHORITY.fullmatch(text.strip(" \t").lower())
    if match is None:
        return None
    host = match["host"]
    if host.startswith("["):
        try:
            host = str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            return None
    else:
        host = host.removesuffix(".")  # `localhost.` is the same name, fully qualified
        if not host or host.endswith("."):
            return None
    return Address(host, int(match["port"]) if match["port"] else None)


def read_origin(text: str) -> Address | None:
    """The address in an `Origin` header; None if it names no server, such as `null`."""
    text = text.strip(" \t").lower()
    match = _SCHEME.match(text)
    address = read_host(text[match.end() :]) if match else None
    return Address(address.host, address.port, match["scheme"]) if match and address else None


def read_allowed(text: str) -> Address | None:
    """One entry of an allow list: `name`, `name:port` or `https://name`. None if it is neither."""
    return read_origin(text) if "://" in text else read_host(text)
