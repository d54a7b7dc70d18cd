"""Idempotency keys: a repeated key gives the same job, at any gateway.

A gateway claims the key in a key-value bucket before it queues the job. The claim holds the id of the job, so that a
repeated request continues where a dead gateway stopped, and a fingerprint of the request, so that a different request
with the same key is refused.
"""

from __future__ import annotations

import hashlib

from nats.js.api import StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue
from pydantic import BaseModel

from bridge.broker.connection import broker_errors
from bridge.broker.stores import bucket_config, make_stream
from bridge.contract import IdempotencyMismatch, InvalidRequest, read_answer

KEEP_S = 24 * 3600.0
MAX_KEY_CHARS = 255
MAX_BYTES = 64 * 1024**2
"""The size of the bucket: several hundred thousand claims."""


class Claim(BaseModel):
    """The first use of a key: the id of the job, and the SHA-256 of the request."""

    job_id: str
    fingerprint: str


class IdempotencyKeys:
    """The keys of one cluster."""

    def __init__(self, js: JetStreamContext, claims: KeyValue, bucket: StreamConfig) -> None:
        self._js = js
        self._claims = claims
        self._bucket = bucket

    @classmethod
    async def open(cls, js: JetStreamContext, bucket: str, *, keep_s: float = KEEP_S) -> IdempotencyKeys:
        """Create the bucket if it is missing. `keep_s` must not exceed the retention of job states."""
        with broker_errors():
            config = bucket_config(bucket, max_age_s=keep_s, max_bytes=MAX_BYTES)
            await make_stream(js, config)
            return cls(js, await js.key_value(bucket), config)

    async def make_store(self) -> None:
        """Make the bucket, if the server has lost it. Raises what nats-py raises."""
        await make_stream(self._js, self._bucket)

    async def claim(self, key: str, claim: Claim) -> Claim:
        """Claim a key. Returns the first claim: the given one, or the one of an earlier request.

        Raises InvalidRequest for an invalid key, IdempotencyMismatch and Unavailable.
        """
        if not 0 < len(key) <= MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
            raise InvalidRequest(
                f"Idempotency-Key must be 1 to {MAX_KEY_CHARS} printable ASCII characters", field="Idempotency-Key"
            )
        name = _name(key)
        with broker_errors():
            while True:
                try:
                    await self._claims.create(name, claim.model_dump_json().encode())
                    return claim
                except KeyWrongLastSequenceError:
                    pass
                try:
                    first = read_answer(Claim, (await self._claims.get(name)).value or b"")
                except KeyNotFoundError:
                    continue  # Released, or just expired.
                if first.fingerprint != claim.fingerprint:
                    raise IdempotencyMismatch(
                        f"the Idempotency-Key {key!r} was used with another request, for job {first.job_id}; "
                        "use a new key for a new request",
                        field="Idempotency-Key",
                    )
                return first

    async def release(self, key: str) -> None:
        """Remove the claim of a request that was refused: the corrected request may use the same key."""
        with broker_errors():
            await self._claims.purge(_name(key))


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
