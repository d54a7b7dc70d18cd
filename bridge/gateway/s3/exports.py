"""Puts the results of jobs that are done into a bucket, and links to them.

A durable consumer of the bucket of job states tells of every job that has ended, and all gateways share it. So a copy
that failed is tried again, by any gateway, for as long as the job is known; meanwhile the image is in the service's own
store as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Mapping

from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy
from pydantic import ValidationError

from bridge import logs
from bridge.broker import consumer
from bridge.broker.connection import BROKER_ERRORS
from bridge.broker.images import digest_of
from bridge.broker.jobs import JobQueue, StoredState
from bridge.contract import (
    BodyTooLarge,
    BridgeError,
    ImageExpired,
    ImageObject,
    JobState,
    JobStatus,
    Unavailable,
    UnknownJob,
    read_answer,
)
from bridge.gateway.s3.bucket import Bucket, Link, S3Error

log = logging.getLogger(__name__)

CONSUMER = "imagegen-exports"
AT_ONCE = 4
ACK_WAIT_S = 20.0
"""After this long another gateway takes over the copies of a gateway that died."""
KEEP_ALIVE_S = 5.0
FIRST_RETRY_S = 2.0
LAST_RETRY_S = 600.0
MAX_LINK_BYTES = 4096
"""A presigned URL with a long key and the token of a session."""
WAIT_S = 10.0
"""How long an answer waits for the copies of its images."""


class Exports:
    """The copies of one gateway. Without a bucket nothing is copied, and states stay as they are."""

    def __init__(self, queue: JobQueue, bucket: Bucket | None) -> None:
        self._queue = queue
        self._bucket = bucket
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    # -- for answers -------------------------------------------------------------------------------------------------

    async def linked(self, state: JobState) -> JobState:
        """A state with a URL for each image that has a copy, and a warning if there is none yet."""
        if self._bucket is None or not state.images:
            return state
        copied = [image.s3_uri for image in state.images if image.s3_uri]
        warnings = list(state.warnings)
        links: dict[str, Link | None] = {}
        try:
            links = dict(zip(copied, await self._bucket.links(copied), strict=True))
        except S3Error as error:
            log.warning("job %s: %s", state.job_id, error)
            warnings.append("the images have no URL: the service cannot sign one, and its log says why")
        if len(copied) < len(state.images):
            warnings.append("the images are not in the S3 bucket yet; they are kept here, and the service tries again")
        return state.model_copy(
            update={"images": [_with_link(image, links) for image in state.images], "warnings": warnings}
        )

    async def ended(self, state: JobState) -> JobState:
        """`linked`, after the copies of a job that has just ended, or after a while."""
        if self._bucket is not None and _lacks_copies(state):
            try:
                async with asyncio.timeout(WAIT_S):
                    state = await self._copy(state)
            except (TimeoutError, S3Error, BridgeError) as error:
                log.info("job %s: its copies are left for later: %s", state.job_id, error or type(error).__name__)
        return await self.linked(state)

    async def image(self, image: ImageObject) -> bytes:
        """The bytes of an image: the service's own, or the copy of one that it no longer keeps.

        Raises ImageExpired if neither is there, and Unavailable.
        """
        try:
            return await self._queue.image(image)
        except ImageExpired:
            if self._bucket is None or image.s3_uri is None or not self._bucket.holds(image.s3_uri):
                raise
            try:
                data = await self._bucket.get(image.s3_uri)
            except S3Error as error:
                raise Unavailable(f"the image {image.name} is kept in S3 alone, and {error}") from error
            if data is None or digest_of(data) != image.digest:  # Removed or replaced by the bucket's owner.
                raise
            return data

    def link_bytes(self, state: JobState) -> int:
        """The most bytes that the URLs of a job's images take in an answer."""
        return 0 if self._bucket is None else MAX_LINK_BYTES * len(state.images)

    # -- in the background -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Copy the images of every job that ends, until cancelled."""
        if self._bucket is None:
            return
        while True:
            try:
                await self._serve()
            except BROKER_ERRORS as error:
                log.warning("copies to S3 are waiting for the NATS server: %s", error or type(error).__name__)
                await asyncio.sleep(1.0)

    async def _serve(self) -> None:
        names = self._queue.names
        js, stream = self._queue.nc.jetstream(), self._queue.states_stream
        config = ConsumerConfig(
            durable_name=CONSUMER,
            filter_subject=f"$KV.{names.states}.>",
            ack_wait=ACK_WAIT_S,
            max_deliver=-1,
            deliver_policy=DeliverPolicy.NEW,
        )
        await consumer.serve(js, stream, config, self._take, at_once=AT_ONCE)

    async def _take(self, msg: Msg) -> None:
        """Copy the images of one job, if this is its end. What fails is delivered again."""
        try:
            state = read_answer(JobState, msg.data)
        except ValidationError:  # A deletion, or of another version.
            await msg.ack()
            return
        if not _lacks_copies(state):
            await msg.ack()
            return
        attempt = msg.metadata.num_delivered
        alive = asyncio.create_task(_keep_alive(msg))
        with logs.about(job_id=state.job_id):
            try:
                await self._copy(state)
            except asyncio.CancelledError:  # This gateway stops: the next one begins at once.
                with contextlib.suppress(*BROKER_ERRORS):
                    await msg.nak()
                raise
            except (ImageExpired, UnknownJob):
                await msg.term()
            except BodyTooLarge as error:
                log.error("the images are in S3, but the job's record cannot say so: %s", error)
                await msg.term()
            except (S3Error, BridgeError) as error:
                wait = min(FIRST_RETRY_S * 2.0 ** (attempt - 1), LAST_RETRY_S)
                log.warning("the images are not in S3 yet: %s; next attempt in %g s", error, wait)
                await msg.nak(delay=wait)
            else:
                await msg.ack()
            finally:
                alive.cancel()

    async def _copy(self, state: JobState) -> JobState:
        """Put the images of a job into the bucket, and write that down. Returns the stored state.

        Raises S3Error, ImageExpired, UnknownJob and Unavailable.
        """
        assert self._bucket is not None
        lock = self._locks.setdefault(state.job_id, asyncio.Lock())
        async with lock:
            while True:
                stored = await self._queue.stored_state(state.job_id)
                if not _lacks_copies(stored.state):
                    return stored.state
                images = [await self._put(self._bucket, image) for image in stored.state.images]
                changed = stored.state.model_copy(update={"images": images})
                if await self._queue.amend(StoredState(changed, stored.revision)):
                    log.info("the images are in S3", extra=logs.fields(job_id=state.job_id, count=len(images)))
                    return changed

    async def _put(self, bucket: Bucket, image: ImageObject) -> ImageObject:
        if image.s3_uri:
            return image
        uri = bucket.uri(image.name)
        await bucket.put(uri, await self._queue.image(image), image.media_type)
        return image.model_copy(update={"s3_uri": uri})


async def _keep_alive(msg: Msg) -> None:
    """Report to the broker that this gateway is at work."""
    while True:
        await asyncio.sleep(KEEP_ALIVE_S)
        with contextlib.suppress(*BROKER_ERRORS):
            await msg.in_progress()


def _lacks_copies(state: JobState) -> bool:
    return state.status is JobStatus.DONE and any(image.s3_uri is None for image in state.images)


def _with_link(image: ImageObject, links: Mapping[str, Link | None]) -> ImageObject:
    link = links.get(image.s3_uri or "")
    if link is None:
        return image
    return image.model_copy(update={"url": link.url, "url_expires_at": link.expires_at})
