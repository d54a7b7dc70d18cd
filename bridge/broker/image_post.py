"""Small images on their way from the worker to the gateway whose caller waits for them.

A hint beside the object store, which has every image before its job is done: asking the store for a small one takes
longer than sending it along. What does not arrive, or is not what the store has, is read from there.
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Mapping

from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.contract import ImageObject

SMALL_BYTES = 256 * 1024
"""Above this the second copy costs more than the round trip that it saves."""
MAX_WAITING = 256
"""Images that have come and were not asked for yet; the oldest makes room."""
HEADER = "Imagegen-Images"
"""Of a job in the queue: the subject below which the gateway of its caller takes images."""


class ImagePost:
    """The sender in a worker, and the letter box in a gateway."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._inbox: str | None = None
        self.waiting: OrderedDict[str, bytes] = OrderedDict()
        """Images that have come, by job and number, the oldest first."""

    async def open(self) -> None:
        """Put up the letter box."""
        self._inbox = self._nc.new_inbox()
        await self._nc.subscribe(f"{self._inbox}.*.*", cb=self._on_image)

    @property
    def headers(self) -> dict[str, str]:
        """For a job whose images are wanted here; empty where there is no letter box."""
        return {HEADER: self._inbox} if self._inbox else {}

    async def send(self, asked: Mapping[str, str] | None, job_id: str, index: int, data: bytes) -> None:
        """Send an image to whoever the headers of its job name. Raises what nats-py raises."""
        inbox = (asked or {}).get(HEADER)
        if inbox and len(data) <= SMALL_BYTES:
            await self._nc.publish(f"{inbox}.{job_id}.{index}", data)

    async def _on_image(self, msg: Msg) -> None:
        job_id, index = msg.subject.rsplit(".", 2)[1:]
        self.waiting[f"{job_id}/{index}"] = msg.data
        if len(self.waiting) > MAX_WAITING:
            self.waiting.popitem(last=False)

    def take(self, image: ImageObject) -> bytes | None:
        """The image, if it has come and is the one that the store has. It is kept no longer."""
        data = self.waiting.pop(image.name.rpartition(".")[0], b"")
        digest = "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        return data if len(data) == image.size and digest == image.digest else None
