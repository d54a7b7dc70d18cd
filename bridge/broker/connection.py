"""The NATS server or cluster that everything goes over: how to reach it, and what our things are called on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client

from bridge.contract.errors import Unavailable
from bridge.stopping import stop

log = logging.getLogger(__name__)

DEFAULT_PREFIX = "ai.vision.imagegen"
CONNECT_PATIENCE_S = 10.0
BROKER_ERRORS = (nats.errors.Error, OSError, asyncio.TimeoutError)
_TOKEN = re.compile(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")


@dataclass(frozen=True)
class Names:
    """The subjects below one prefix, and the stream and buckets that go with it.

    Installations with different prefixes share a cluster (and an account) without hearing of each other.
    """

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if bad := [token for token in self.prefix.split(".") if not _TOKEN.fullmatch(token)]:
            raise ValueError(
                f"subject prefix {self.prefix!r}: {bad[0]!r} is not a word of letters, digits, single - and _; "
                f"an example is {DEFAULT_PREFIX}"
            )

    @property
    def request(self) -> str:
        return f"{self.prefix}.request"

    @property
    def submit(self) -> str:
        """Where a job is queued without waiting for it."""
        return f"{self.prefix}.submit"

    @property
    def state(self) -> str:
        """`<this>.<job id>`: where the present state of a job is asked for."""
        return f"{self.prefix}.state"

    @property
    def result(self) -> str:
        return f"{self.prefix}.result"

    @property
    def model_info(self) -> str:
        return f"{self.prefix}.model_info"

    @property
    def plan(self) -> str:
        return f"{self.prefix}.plan"

    @property
    def options(self) -> str:
        """Where a gateway asks what the widgets of nodes offer."""
        return f"{self.prefix}.options"

    @property
    def jobs(self) -> str:
        return f"{self.prefix}.jobs"

    @property
    def events(self) -> str:
        return f"{self.prefix}.events"

    @property
    def cancel(self) -> str:
        """Where a caller asks for it; `<this>.<job id>` is what gateways say to the workers."""
        return f"{self.prefix}.cancel"

    @property
    def workers(self) -> str:
        return f"{self.prefix}.workers"

    @property
    def watch(self) -> str:
        """Where a gateway says that somebody wants to see the previews of a job."""
        return f"{self.prefix}.watch"

    @property
    def callbacks(self) -> str:
        """Where jobs lie that have ended and whose caller is to be called back."""
        return f"{self.prefix}.callbacks"

    @property
    def callbacks_stream(self) -> str:
        return "IMAGEGEN_CALLBACKS" if self.prefix == DEFAULT_PREFIX else f"{self._slug}__callbacks".upper()

    @property
    def callbacks_consumer(self) -> str:
        return "imagegen-callbacks"

    @property
    def consumer(self) -> str:
        return "imagegen-workers"

    @property
    def stream(self) -> str:
        return "IMAGEGEN_JOBS" if self.prefix == DEFAULT_PREFIX else f"{self._slug}__jobs".upper()

    @property
    def states(self) -> str:
        """The key-value bucket of the jobs' states."""
        return f"{self._slug}-jobs"

    @property
    def images(self) -> str:
        """The object store of the images."""
        return f"{self._slug}-images"

    @property
    def inputs(self) -> str:
        """The object store of the images that requests bring."""
        return f"{self._slug}-inputs"

    @property
    def idempotency(self) -> str:
        """The key-value bucket of the Idempotency-Keys that were used."""
        return f"{self._slug}-idempotency"

    @property
    def _slug(self) -> str:
        # Names of streams and buckets may hold no dot. No token holds "__", so two prefixes never make one slug.
        return "imagegen" if self.prefix == DEFAULT_PREFIX else self.prefix.replace(".", "__")


@dataclass(frozen=True)
class Access:
    """What a server wants to see before it lets us in. Files are read at every connection."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    credentials: Path | None = None  # a .creds file: JWT and seed of a user
    tls_ca: Path | None = None  # who signed the server's certificate, if the system does not know them
    tls_cert: Path | None = None  # our own certificate, where the server asks for one, and its key
    tls_key: Path | None = None

    def options(self) -> dict[str, Any]:
        """Arguments for `nats.connect`. Raises Unavailable for files that cannot be read."""
        options: dict[str, Any] = {"user": self.user, "password": self.password, "token": self.token}
        if self.credentials is not None:
            if not self.credentials.is_file():
                raise Unavailable(f"the NATS credentials file {self.credentials} does not exist")
            options["user_credentials"] = str(self.credentials)
        if self.tls_ca or self.tls_cert:
            try:
                context = ssl.create_default_context(cafile=self.tls_ca)
                if self.tls_cert:
                    context.load_cert_chain(self.tls_cert, self.tls_key)
            except OSError as error:  # ssl.SSLError is one
                files = ", ".join(str(path) for path in (self.tls_ca, self.tls_cert, self.tls_key) if path)
                raise Unavailable(f"the TLS files for NATS cannot be used ({error}): {files}") from error
            options["tls"] = context
        return {name: value for name, value in options.items() if value is not None}


class Refused(Unavailable):
    """The server is there and does not let us in; waiting will not help."""


async def connect(
    url: str, name: str, *, access: Access | None = None, patience_s: float = CONNECT_PATIENCE_S
) -> Client:
    """A connection that outlives restarts of the broker. `url` may name several servers, with commas between.

    Raises Unavailable if there is none in `patience_s`, and Refused if the server does not accept us: at once where
    no other could.
    """
    options = (access or Access()).options()
    servers = [server.strip() for server in url.split(",")]
    refusals: list[str] = []
    refused = asyncio.Event()

    async def on_error(error: Exception) -> None:
        text = str(error)
        if "uthorization" in text or "uthentication" in text or isinstance(error, ssl.SSLError):
            refusals.append(text)
            if len(servers) == 1 and "imeout" not in text:  # a machine too busy to log in is not refused
                refused.set()
        await _log_error(error)

    connecting = asyncio.create_task(
        nats.connect(
            servers, name=name, max_reconnect_attempts=-1, reconnect_time_wait=0.25, error_cb=on_error, **options
        )
    )
    giving_up = asyncio.create_task(refused.wait())
    try:
        await asyncio.wait([connecting, giving_up], timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            raise TimeoutError
        return connecting.result()
    except BROKER_ERRORS as error:
        if refusals:
            raise Refused(f"the NATS server at {_bare(url)} refuses this connection: {refusals[-1]}") from error
        raise Unavailable(f"no NATS server answers at {_bare(url)}: {error or type(error).__name__}") from error
    finally:
        await stop([connecting, giving_up])


async def subscribed(nc: Client) -> None:
    """Wait until the server knows every subscription that was made so far.

    One `flush` does not say so: nats-py writes its PING past the commands that still lie in its buffer
    (`Client._send_ping`), and the server may answer it first. By then the buffer is written, so the second PING
    comes after them. Raises what `flush` raises.
    """
    await nc.flush()
    await nc.flush()


def _bare(url: str) -> str:
    """The URL without the password that it may hold."""
    return re.sub(r"//[^/@,]*@", "//", url)


async def _log_error(error: Exception) -> None:
    # What a subscription's callback raises ends here too, and would otherwise be lost without a trace.
    if isinstance(error, (nats.errors.Error, OSError)):
        log.debug("NATS: %r", error)
    else:
        log.error("NATS callback failed", exc_info=error)


@contextlib.contextmanager
def broker_errors() -> Iterator[None]:
    """Turn what the NATS client raises into Unavailable."""
    try:
        yield
    except BROKER_ERRORS as error:
        raise Unavailable(f"the NATS server did not answer ({error or type(error).__name__}); try again") from error
