"""Records that the settings give to the NATS side: how to log in, and what is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Retention:
    """How long, and how much, the broker keeps. The oldest goes first.

    States outlive images, so that a caller who asks for an expired image learns why it is gone. ComfyUI's output
    folder keeps every image for good.
    """

    jobs_s: float = 7 * 24 * 3600.0
    jobs_bytes: int = 1024**3
    images_s: float = 24 * 3600.0
    images_bytes: int = 8 * 1024**3


@dataclass(frozen=True)
class Access:
    """How to log in to a NATS server. The files are read at every connection."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    credentials: Path | None = None
    """A .creds file: JWT and seed of a user."""
    tls_ca: Path | None = None
    """The authority that signed the server's certificate, where the system does not know it."""
    tls_cert: Path | None = None
    """The client certificate, where the server asks for one, with its key in `tls_key`."""
    tls_key: Path | None = None
