"""The images of jobs in a JetStream object store. Any object store client can read them by name.

This does not use nats-py's `ObjectStore`, for three reasons: that takes four round trips to put or get an image, this
one; its `get` reads chunks without a timeout and hangs when the server dies; and when its store is full it refuses new
images, where this drops the oldest.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import NamedTuple

import nats.js.errors
from nats.js.api import DiscardPolicy, Header, StorageType, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from bridge.broker.connection import BROKER_ERRORS, broker_errors
from bridge.broker.stores import LEAST_AGE_S, NO_SPACE_ERRORS, SERVERS_WINDOW_S, is_at_its_bound, make_stream
from bridge.contract import ImageExpired, ImageObject, StorageFull, Unavailable

CHUNK_BYTES = 512 * 1024
"""The size of a chunk: below the default max_payload of NATS servers, 1 MiB."""
DEFAULT_MAX_BYTES = 8 * 1024**3
WRONG_LAST_SEQUENCE_ERRORS = (10071, 10164)
RETRIES_S = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Waits between attempts to read while the server is down."""


class KeptImage(NamedTuple):
    """An image in a bucket. A higher `sequence` was stored later."""

    name: str
    size: int
    nuid: str
    sequence: int
    age_s: float


class ImageStore:
    """One bucket. The subject of an image's chunks is derived from its name and digest: a reader that knows both needs
    no look-up, and an image that is written twice is stored once."""

    def __init__(
        self, js: JetStreamContext, bucket: str, max_bytes: int = DEFAULT_MAX_BYTES, *, keeps: bool = False
    ) -> None:
        """`keeps`: a full bucket refuses new images; else it drops the oldest."""
        self._js = js
        self._bucket = bucket
        self._max_bytes = max_bytes
        self._keeps = keeps
        self._stream = f"OBJ_{bucket}"

    async def open(self, *, max_age_s: float) -> None:
        """Create the bucket, or update its bounds; a small disk gets a smaller bucket. Raises what nats-py raises."""
        config = StreamConfig(
            name=self._stream,
            subjects=[f"$O.{self._bucket}.C.>", f"$O.{self._bucket}.M.>"],
            storage=StorageType.FILE,
            max_age=max(max_age_s, LEAST_AGE_S),
            duplicate_window=min(SERVERS_WINDOW_S, max(max_age_s, LEAST_AGE_S)),
            max_bytes=self._max_bytes,
            discard=DiscardPolicy.NEW if self._keeps else DiscardPolicy.OLD,
            allow_rollup_hdrs=True,
            allow_direct=True,
        )
        self._max_bytes = await make_stream(self._js, config)

    async def put(self, name: str, data: bytes) -> ImageObject:
        """Store an image. When this returns, the server has it. Raises StorageFull and Unavailable."""
        if 0 < self._max_bytes // 2 < len(data):
            raise StorageFull(f"an image of {len(data)} bytes is too large for a store of {self._max_bytes} bytes")
        digest = digest_of(data)
        nuid = _nuid(name, digest)
        chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
        info = {
            "name": name,
            "bucket": self._bucket,
            "nuid": nuid,
            "size": len(data),
            "mtime": datetime.now(UTC).isoformat(),
            "chunks": len(chunks),
            "digest": digest,
            "options": {"max_chunk_size": CHUNK_BYTES},
        }
        try:
            await asyncio.gather(
                self._put_chunks(nuid, chunks),
                self._put_info(self._info_subject(name), json.dumps(info).encode()),
            )
        except APIError as error:
            if error.err_code in NO_SPACE_ERRORS:
                if self._keeps and is_at_its_bound(error):
                    raise StorageFull(
                        f"the images and files of jobs that wait take all {self._max_bytes} bytes of their store; try "
                        "again when a job has ended"
                    ) from error
                raise StorageFull(
                    f"the NATS server has no space for the image ({error.description}): free disk space, or raise "
                    "the server's storage limit"
                ) from error
            raise Unavailable(f"the NATS server refused the image: {error.description}") from error
        except BROKER_ERRORS as error:
            raise Unavailable(f"the NATS server did not take the image: {error or type(error).__name__}") from error
        return ImageObject(bucket=self._bucket, name=name, size=len(data), digest=digest)

    async def _put_info(self, subject: str, info: bytes) -> None:
        try:
            await self._js.publish(subject, info, headers={Header.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"})
        except APIError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE_ERRORS:
                raise
            # Replacing costs the server several times as much as a first write.
            await self._js.publish(subject, info, headers={Header.ROLLUP: "sub"})

    async def _put_chunks(self, nuid: str, chunks: list[bytes]) -> None:
        subject = f"$O.{self._bucket}.C.{nuid}"
        try:
            await self._publish_chunks(subject, chunks)
        except APIError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE_ERRORS:
                raise
            # An earlier attempt stored it, perhaps in part: its worker died, or the answer was lost.
            await self._js.purge_stream(self._stream, subject=subject)
            await self._publish_chunks(subject, chunks)

    async def _publish_chunks(self, subject: str, chunks: list[bytes]) -> None:
        if not chunks:
            return
        await self._js.publish(subject, chunks[0], headers={Header.EXPECTED_LAST_SUBJECT_SEQUENCE: "0"})
        # A connection preserves order, so the other chunks need not wait for each other.
        await asyncio.gather(*(self._js.publish(subject, chunk) for chunk in chunks[1:]))

    async def kept(self) -> list[KeptImage]:
        """All images, the oldest first. Raises Unavailable."""
        found = []
        with broker_errors():
            subjects = (await self._js.stream_info(self._stream, f"$O.{self._bucket}.M.>")).state.subjects or {}
            for subject in subjects:
                try:
                    msg = await self._js.get_last_msg(self._stream, subject, direct=True)
                    info = json.loads(msg.data or b"{}")
                    age_s = (datetime.now(UTC) - datetime.fromisoformat(info["mtime"])).total_seconds()
                    found.append(KeptImage(info["name"], info["size"], info["nuid"], msg.seq or 0, age_s))
                except (nats.js.errors.NotFoundError, ValueError, KeyError, TypeError):  # Gone meanwhile, or damaged.
                    continue
        return sorted(found, key=lambda image: image.sequence)

    async def delete(self, image: KeptImage) -> None:
        """Delete an image. Raises Unavailable."""
        with broker_errors():
            await self._js.purge_stream(self._stream, subject=f"$O.{self._bucket}.C.{image.nuid}")
            await self._js.purge_stream(self._stream, subject=self._info_subject(image.name))

    def _info_subject(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def get(self, image: ImageObject) -> bytes:
        """The bytes of an image. Raises ImageExpired if the retention has removed it, and Unavailable."""
        for wait in RETRIES_S:
            try:
                return await self._read(image)
            except Unavailable:
                await asyncio.sleep(wait)
        return await self._read(image)

    async def _read(self, image: ImageObject) -> bytes:
        subject = f"$O.{self._bucket}.C.{_nuid(image.name, image.digest)}"
        data = b""
        sequence = 1
        with broker_errors():
            try:
                while len(data) < image.size:
                    msg = await self._js.get_msg(self._stream, seq=sequence, subject=subject, direct=True, next=True)
                    assert msg.seq is not None
                    data += msg.data or b""
                    sequence = msg.seq + 1
            except nats.js.errors.NotFoundError:
                data = b""
        if len(data) != image.size or digest_of(data) != image.digest:
            raise ImageExpired(f"{image.name} is no longer kept; send the request again")
        return data


def digest_of(data: bytes) -> str:
    """The digest of an image, as the object store of NATS writes it."""
    return "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()


def _nuid(name: str, digest: str) -> str:
    return hashlib.sha256(f"{name}\n{digest}".encode()).hexdigest()[:32]
