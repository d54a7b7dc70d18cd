"""The connection to the NATS server or cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import Iterator
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.broker.nats_client import MessageTooLarge, NatsClient
from bridge.contract import BodyTooLarge, Unavailable
from bridge.settings import Access
from bridge.stopping import stop

log = logging.getLogger(__name__)

CONNECT_PATIENCE_S = 10.0
PING_INTERVAL_S = 10
"""A server that leaves two pings without an answer is frozen, and the client connects again."""
BROKER_ERRORS = (nats.errors.Error, OSError, asyncio.TimeoutError)
OUR_ERRORS = (
    nats.errors.MaxPayloadError,
    nats.errors.BadSubjectError,
    nats.errors.BadHeaderError,
    nats.js.errors.InvalidKeyError,
)
"""Those of BROKER_ERRORS that waiting does not help against: what was to be sent is wrong."""


def access_options(access: Access) -> dict[str, Any]:
    """The arguments of `nats.connect` for an access. Raises Unavailable if a file cannot be read."""
    options: dict[str, Any] = {"user": access.user, "password": access.password, "token": access.token}
    if access.credentials is not None:
        if not access.credentials.is_file():
            raise Unavailable(f"the NATS credentials file {access.credentials} does not exist")
        options["user_credentials"] = str(access.credentials)
    if access.tls_ca or access.tls_cert:
        try:
            context = ssl.create_default_context(cafile=access.tls_ca)
            if access.tls_cert:
                context.load_cert_chain(access.tls_cert, access.tls_key)
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(str(path) for path in (access.tls_ca, access.tls_cert, access.tls_key) if path)
            raise Unavailable(f"the TLS files for NATS cannot be used ({error}): {files}") from error
        options["tls"] = context
    return {name: value for name, value in options.items() if value is not None}


class Refused(Unavailable):
    """The server answers but refuses the login. Waiting does not help."""


async def connect(
    url: str, name: str, *, access: Access | None = None, patience_s: float = CONNECT_PATIENCE_S
) -> NatsClient:
    """Connect, and reconnect whenever the broker restarts. `url` may name several servers, separated by commas.

    Raises Unavailable if no server answers within `patience_s`, and Refused if the server refuses the login: at once
    if there is only one server.
    """
    options = access_options(access or Access())
    servers = [server.strip() for server in url.split(",")]
    refusals: list[str] = []
    refused = asyncio.Event()

    async def on_error(error: Exception) -> None:
        text = str(error)
        if "uthorization" in text or "uthentication" in text or isinstance(error, ssl.SSLError):
            refusals.append(text)
            if len(servers) == 1 and "imeout" not in text:  # a login that timed out was not refused
                refused.set()
        await _log_error(error)

    nc = NatsClient()
    connecting = asyncio.create_task(
        nc.connect(
            servers,
            name=name,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,  # pyright: ignore[reportArgumentType] - asyncio.sleep takes it
            ping_interval=PING_INTERVAL_S,
            error_cb=on_error,
            **options,
        )
    )
    giving_up = asyncio.create_task(refused.wait())
    try:
        await asyncio.wait([connecting, giving_up], timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            raise TimeoutError
        connecting.result()
        return nc
    except BROKER_ERRORS as error:
        if refusals:
            raise Refused(f"the NATS server at {_bare(url)} refuses this connection: {refusals[-1]}") from error
        raise Unavailable(f"no NATS server answers at {_bare(url)}: {error or type(error).__name__}") from error
    finally:
        await stop([connecting, giving_up])


async def respond(nc: Client, msg: Msg, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
    """Reply to a message that wants a reply. nats-py's `Msg.respond` sends the headers of the request back too."""
    if msg.reply:
        await nc.publish(msg.reply, data, headers=headers)


async def subscribed(nc: Client) -> None:
    """Wait until the server knows every subscription made so far. Raises what `flush` raises.

    One `flush` is not enough: nats-py sends its PING past the commands that are still in its buffer
    (`Client._send_ping`), so the server may answer before it reads them. The second PING comes after them.
    """
    await nc.flush()
    await nc.flush()


def _bare(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"//[^/@,]*@", "//", url)


async def _log_error(error: Exception) -> None:
    # Exceptions of subscription callbacks arrive here too, and would otherwise be lost.
    if isinstance(error, (nats.errors.Error, OSError)):
        log.debug("NATS: %r", error)
    else:
        log.error("NATS callback failed", exc_info=error)


@contextlib.contextmanager
def broker_errors() -> Iterator[None]:
    """Turn what the NATS client raises into Unavailable, or BodyTooLarge for what no repetition makes smaller."""
    try:
        yield
    except MessageTooLarge as error:
        raise BodyTooLarge(str(error)) from error
    except OUR_ERRORS:
        raise
    except BROKER_ERRORS as error:
        raise Unavailable(f"the NATS server did not answer ({error or type(error).__name__}); try again") from error
