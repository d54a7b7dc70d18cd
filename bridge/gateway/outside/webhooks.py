"""Webhooks: a signed POST to a job's `callback_url` when the job has ended, repeated until it is answered with 2xx.

Webhooks wait in a JetStream work queue of their own, so that they outlive every process; all gateways share it. A
webhook may arrive twice, because an answer can be lost: `Imagegen-Job` identifies the job.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from dataclasses import dataclass

import aiohttp
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig
from yarl import URL

from bridge import logs, tracing
from bridge.broker import consumer
from bridge.broker.connection import BROKER_ERRORS
from bridge.broker.jobs import JobQueue
from bridge.contract import BridgeError, JobState, UnknownJob, WebhookBody
from bridge.gateway.outside.callback_address import AddressRefused, CallbackPolicy, CheckedResolver
from bridge.gateway.s3 import Exports

log = logging.getLogger(__name__)

SIGNATURE_HEADER = "Imagegen-Signature"
JOB_HEADER = "Imagegen-Job"
ATTEMPT_HEADER = "Imagegen-Attempt"
TOLERANCE_S = 300.0
TIMEOUT_S = 15.0
ACK_WAIT_S = 60.0
"""After this long another gateway takes over the webhook of a gateway that died."""
AT_ONCE = 8
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 3600.0
MAX_ATTEMPTS = 24
"""With waits that double up to an hour, attempts continue for about half a day."""
GONE = 410
"""A receiver that answers with this status gets no further attempts."""


def sign(secret: str, body: bytes, timestamp: int) -> str:
    """The signature header: `t=<seconds>,v1=<hex>`, an HMAC-SHA256 over `<seconds>.<body>`."""
    mac = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={mac.hexdigest()}"


def verify(
    secret: str, body: bytes, header: str, *, now: float | None = None, tolerance_s: float = TOLERANCE_S
) -> bool:
    """For receivers: whether the signature is valid and not older than `tolerance_s`."""
    stamp = header.partition(",")[0].removeprefix("t=")
    if not stamp.isascii() or not stamp.isdecimal() or len(stamp) > 12:
        return False
    fresh = abs((time.time() if now is None else now) - int(stamp)) <= tolerance_s
    return hmac.compare_digest(sign(secret, body, int(stamp)).encode(), header.encode()) and fresh


@dataclass(frozen=True)
class Backoff:
    """Seconds before attempt n + 1: doubling, from `first_s` to `last_s`; None when n was the last."""

    first_s: float = FIRST_RETRY_S
    last_s: float = LAST_RETRY_S
    attempts: int = MAX_ATTEMPTS

    def after(self, attempt: int) -> float | None:
        if attempt >= self.attempts:
            return None
        return min(self.first_s * 2.0 ** (attempt - 1), self.last_s)


class Webhooks:
    """The calls of one gateway. Call `run` once and let it go on."""

    def __init__(
        self,
        queue: JobQueue,
        policy: CallbackPolicy,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        exports: Exports | None = None,
    ) -> None:
        self._queue = queue
        self._exports = exports or Exports(queue, None)
        self._policy = policy
        self._backoff = backoff

    async def run(self) -> None:
        """Make the calls until cancelled. Without a secret nothing is called, and nothing forgotten."""
        if self._policy.secret is None:
            return
        connector = aiohttp.TCPConnector(resolver=CheckedResolver(self._policy), use_dns_cache=False, limit=AT_ONCE)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            while True:
                try:
                    await self._serve(session)
                except BROKER_ERRORS as error:
                    log.warning("webhooks are waiting for the NATS server: %s", error or type(error).__name__)
                    await asyncio.sleep(1.0)

    async def _serve(self, session: aiohttp.ClientSession) -> None:
        names = self._queue.names
        js = self._queue.nc.jetstream()
        config = ConsumerConfig(
            durable_name=names.callbacks_consumer, filter_subject=names.callbacks, ack_wait=ACK_WAIT_S, max_deliver=-1
        )
        await consumer.serve(
            js, names.callbacks_stream, config, lambda msg: self._deliver(msg, session), at_once=AT_ONCE
        )

    async def _deliver(self, msg: Msg, session: aiohttp.ClientSession) -> None:
        job_id, attempt = msg.data.decode(), msg.metadata.num_delivered
        try:
            state = await self._queue.state(job_id)
        except UnknownJob:
            await msg.term()
            return
        except BridgeError:
            return  # The broker is down; it will deliver again.
        trace = tracing.Trace.read(state.traceparent, state.tracestate)
        with (
            tracing.span("webhook", "client", trace, job_id=job_id, attempt=attempt) as span,
            logs.about(job_id=job_id),
        ):
            failure = await self._call(state, attempt, session)
            if failure is not None:
                span.fail("webhook_failed")
        if failure is None:
            await msg.ack_sync()
            return
        wait = self._backoff.after(attempt)
        if wait is None or failure.final:
            log.warning("job %s: webhook given up after %d attempts: %s", job_id, attempt, failure.cause)
            await msg.term()
            return
        log.info("job %s: webhook failed (%s); next attempt in %g s", job_id, failure.cause, wait)
        await msg.nak(delay=wait)

    async def _call(self, state: JobState, attempt: int, session: aiohttp.ClientSession) -> Failure | None:
        """Send a webhook once; None if the receiver accepted it."""
        assert self._policy.secret is not None
        assert state.callback_url is not None
        shown = await self._exports.ended(state)
        url, body = URL(state.callback_url), WebhookBody.of(shown).model_dump_json().encode()
        headers = {
            "Content-Type": "application/json",
            SIGNATURE_HEADER: sign(self._policy.secret, body, int(time.time())),
            JOB_HEADER: state.job_id,
            ATTEMPT_HEADER: str(attempt),
            **tracing.headers(),
        }
        try:
            # aiohttp does not call the resolver for a host that is an address.
            await self._policy.addresses(url.host or "", url.port or 0)
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                if 200 <= response.status < 300:
                    return None
                return Failure(f"HTTP {response.status}", final=response.status == GONE)
        except (AddressRefused, aiohttp.InvalidURL) as error:
            return Failure(str(error), final=False)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return Failure(str(error) or type(error).__name__, final=False)


@dataclass(frozen=True)
class Failure:
    """Why a receiver did not accept a webhook. A `final` failure ends the attempts."""

    cause: str
    final: bool
