"""Checks before anything starts. Each failure is one clear line."""

from __future__ import annotations

import errno
import socket

from bridge.disk import free_bytes, size
from bridge.service.errors import ServiceError
from bridge.settings import Settings

LEAST_SPACE_BYTES = 8 * 1024 * 1024
"""With less free space than this, nats-server cannot store."""


def check_port(host: str, port: int) -> None:
    """Raise ServiceError if another program listens on the port, or the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ServiceError(f"host {host!r} is unknown ({error.strerror}); check --host") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None


def check_space(settings: Settings) -> None:
    """Raise ServiceError if the disk of the state folder takes not even the files of a start."""
    free = free_bytes(settings.state_dir)
    if free is not None and free < LEAST_SPACE_BYTES:
        raise ServiceError(
            f"the disk of {settings.state_dir} has {size(free)} free, and a start needs {size(LEAST_SPACE_BYTES)}: "
            "free space there, or choose another --state-dir"
        )


def _cannot_listen(host: str, port: int, error: OSError) -> ServiceError:
    if error.errno == errno.EADDRINUSE:
        return ServiceError(
            f"port {port} on {host} is in use by another program; choose another with --port (or IMAGEGEN_PORT)"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ServiceError(f"port {port} needs more rights than you have; choose one above 1023 with --port")
    return ServiceError(f"cannot listen on {host}, port {port}: {error.strerror}; check --host and --port")


class ReservedPort:
    """A free loopback port, reserved for a child until `release`.

    The socket is bound with SO_REUSEADDR but does not listen. A child that sets SO_REUSEADDR too (nats-server and
    aiohttp do) can listen on the port at once, and the system gives it to nobody else in the meantime.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        self._socket.close()
