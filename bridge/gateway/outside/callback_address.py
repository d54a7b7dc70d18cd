"""Where a webhook may go. With a `callback_url` a stranger makes this machine send a request, which must not reach
what only this machine can reach: loopback, the local network, link-local services such as a cloud's metadata.

The host name is resolved, and every address checked, when the job arrives and again for each connection, which then
goes to an address that was checked. So a name that changes its address in between (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from asyncio import get_running_loop, timeout
from dataclasses import dataclass

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from bridge.contract import InvalidRequest, shown

RESOLVE_TIMEOUT_S = 5.0
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
ISATAP = 0x5EFE
"""The third quarter of an address that holds an IPv4 address in its last; the two bits that may differ are left out."""
SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24"),
        *("2001::/23", "2620:4f:8000::/48", "3ffe::/16", "3fff::/20"),
    )
)
"""Of IANA's registries of special-purpose addresses (RFC 6890) those that Python counts as global: relays, sinks of the
reverse zones, and documentation. No webhook is served there."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressRefused(OSError):
    """The address is not public. An OSError, like every failure to connect."""


@dataclass(frozen=True)
class CallbackPolicy:
    """Whether webhooks are sent (`secret` signs them), and whether they may go to private addresses."""

    secret: str | None = None
    allow_private: bool = False
    setting: str = "IMAGEGEN_WEBHOOK_ALLOW_PRIVATE"
    """The setting that allows private addresses."""

    async def check(self, url: str) -> None:
        """Raise InvalidRequest for a URL that webhooks must not go to."""
        if self.secret is None:
            raise InvalidRequest(
                "callback_url cannot be used: this service has no secret to sign webhooks with; "
                "set IMAGEGEN_WEBHOOK_SECRET",
                field="callback_url",
            )
        try:
            parsed = URL(url)
            port = parsed.port
        except ValueError as error:
            raise InvalidRequest(f"callback_url {shown(url)} is not a URL: {error}", field="callback_url") from error
        if parsed.scheme not in ("http", "https") or not parsed.host or not port:
            raise InvalidRequest(f"callback_url {shown(url, 200)} is not an http or https URL", field="callback_url")
        if parsed.user is not None or parsed.password is not None:
            raise InvalidRequest(
                "callback_url contains a user name or a password, which would be stored with the job; leave it out",
                field="callback_url",
            )
        try:
            await self.addresses(parsed.host, port)
        except OSError as error:
            raise InvalidRequest(f"callback_url {shown(url, 200)}: {error}", field="callback_url") from error

    async def addresses(self, host: str, port: int, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of a host. Raises AddressRefused if any of them is not public, and OSError."""
        try:
            async with timeout(RESOLVE_TIMEOUT_S):
                found = await get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, TimeoutError) as error:
            raise OSError(f"the name {shown(host)} cannot be resolved ({error or 'no answer'})") from error
        results = []
        for found_family, _, protocol, _, address in found:
            if not self.allow_private and not is_public(str(address[0])):
                raise AddressRefused(
                    f"{host} is {address[0]}, which is not a public address; {self.setting}=1 allows private ones"
                )
            results.append(
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=int(address[1]),
                    family=found_family,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results


def is_public(text: str) -> bool:
    """Whether an address is on the public internet. One that embeds an IPv4 address is judged by that too."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None and not is_public(str(inner)):
            return False
        if address.ipv4_mapped or address in NAT64 or address.sixtofour or address.teredo:
            return inner is not None
        if address not in GLOBAL_UNICAST:  # Everything else is local, multicast, or not assigned, as fec0::/10.
            return False
    special = any(address in network for network in SPECIAL if network.version == address.version)
    return address.is_global and not address.is_multicast and not address.is_reserved and not special


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a gateway on the way would send to: of NAT64, 6to4, Teredo, ISATAP, or a mapped one."""
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in NAT64 or int(address) >> 32 & 0xFCFFFFFF == ISATAP:
        return low
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


class CheckedResolver(AbstractResolver):
    """A resolver for aiohttp, which connects only to the addresses that it returns."""

    def __init__(self, policy: CallbackPolicy) -> None:
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return await self._policy.addresses(host, port, family)

    async def close(self) -> None:
        """Nothing to close."""
