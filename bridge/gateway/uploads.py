"""The images and files of a request: read, checked against the mode's parameters, and stored for the worker."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping

from bridge.broker.images import KeptImage
from bridge.broker.jobs import JobQueue
from bridge.contract import (
    BodyTooLarge,
    ErrorDetail,
    ImageExpired,
    ImageObject,
    StorageFull,
    UnknownJob,
    UnreadableRecord,
    shown,
)
from bridge.gateway.outside.image_urls import ImageUrls, is_url
from bridge.gateway.requests import Body, Limits
from bridge.modes import files_in, images_in
from bridge.modes.decoding import Decoder
from bridge.modes.images_in import BadImage, InputImage, JobImage
from bridge.modes.library import Mode
from bridge.modes.parameters import UPLOADS, Parameter, ParameterKind

KIND_NAMES = {ParameterKind.IMAGE: "an image", ParameterKind.FILE: "a file"}
"""What error messages call the value of a parameter."""
ORPHAN_S = 600.0
"""An upload whose job is not queued after this long belongs to a request that was refused."""
SPACE_FACTOR = 8
"""How much more than one upload needs is freed at once in a full store."""


ReadImage = Callable[[ImageObject], Awaitable[bytes]]


class Uploads:
    """Reads and stores the uploads of one gateway's requests. `result` reads an image of an earlier job."""

    def __init__(self, queue: JobQueue, limits: Limits, urls: ImageUrls, result: ReadImage) -> None:
        self._queue = queue
        self._result = result
        self._limits = limits
        self.decoder = Decoder(limits.image)
        self._urls = urls

    async def read(self, body: Body, mode: Mode) -> tuple[dict[str, InputImage], list[ErrorDetail]]:
        """The uploads of a request by parameter, and what is wrong with those that cannot be used.

        Raises BodyTooLarge and Unavailable.
        """
        images: dict[str, InputImage] = {}
        problems: list[ErrorDetail] = []
        wanted = {name: parameter for name, parameter in mode.parameters.items() if parameter.kind in UPLOADS}
        text_bytes = _text_bytes(body, wanted)
        if text_bytes > self._limits.body_bytes:
            raise BodyTooLarge(
                f"the body has {text_bytes} bytes besides its images and files; the limit (max_body_bytes) is "
                f"{self._limits.body_bytes}"
            )
        for name in sorted(body.files.keys() - wanted.keys()):
            message = f"mode {mode.name} takes no image or file {shown(name)}; it takes {', '.join(wanted) or 'none'}"
            problems.append(ErrorDetail(field=name, message=message))
        for name, parameter in wanted.items():
            value = body.files.get(name, body.values.get(name))
            if value is None:
                continue
            try:
                data = value if isinstance(value, bytes) else await self._named(value, parameter.kind)
                images[name] = await self._checked(data, parameter)
            except BadImage as error:
                problems.append(ErrorDetail(field=name, message=f"{name} {error}"))
        return images, problems

    async def store(self, images: Mapping[str, InputImage], job_id: str) -> None:
        """Keep the uploads of a job under the names that its parameters refer to. Raises StorageFull, Unavailable."""
        for name, image in images.items():
            reference = images_in.stored(image.reference(job_id, name), self._queue.names.inputs)
            assert reference is not None
            try:
                await self._queue.inputs.put(reference.name, image.data)
            except StorageFull:
                if not await self._make_space(len(image.data)):
                    raise
                await self._queue.inputs.put(reference.name, image.data)

    async def _make_space(self, size: int) -> bool:
        """Delete uploads of jobs that have ended, the oldest first. False if there are none. Raises Unavailable."""
        wanted, freed = SPACE_FACTOR * size, 0
        for kept in await self._queue.inputs.kept():
            if await self._is_unneeded(kept):
                await self._queue.inputs.delete(kept)
                freed += kept.size
            if freed >= wanted:
                break
        return freed >= size

    async def _is_unneeded(self, kept: KeptImage) -> bool:
        try:
            return (await self._queue.state(kept.name.partition("/")[0])).status.final
        except UnknownJob:  # Its request was refused, or its job is about to be queued.
            return kept.age_s > ORPHAN_S
        except UnreadableRecord:
            return False

    async def _named(self, value: object, kind: ParameterKind) -> bytes:
        """The bytes that a text holds or refers to. Raises BadImage and Unavailable."""
        wanted = KIND_NAMES[kind]
        if kind is ParameterKind.IMAGE and isinstance(value, str) and is_url(value):
            return await self._urls.fetch(value)
        given = images_in.stored(value, self._queue.names.inputs)
        if given is not None:
            # The parameters of an earlier job, sent again. They hold its digest, so the caller has seen that job.
            try:
                return await self._queue.inputs.get(given)
            except ImageExpired as error:
                raise BadImage(f"{given.name} is not {wanted} that is still kept: send it again") from error
        data = await self.decoder.run(images_in.read_text, value, wanted)
        return await self._image_of(data) if isinstance(data, JobImage) else data

    async def _checked(self, data: bytes, parameter: Parameter) -> InputImage:
        """The upload, if the parameter can take it. Raises BadImage."""
        if parameter.kind is ParameterKind.IMAGE:
            return await self.decoder.check(data)
        return await self.decoder.run(files_in.check, data, self._limits.file_bytes, parameter.accept)

    async def _image_of(self, place: JobImage) -> bytes:
        """An image of an earlier job. Raises BadImage and Unavailable."""
        name = f"job:{place.job_id}/{place.index}"
        try:
            state = await self._queue.state(place.job_id)
            if place.index >= len(state.images):
                raise BadImage(f"{name}: that job is {state.status.value} and has {len(state.images)} images")
            return await self._result(state.images[place.index])
        except (UnknownJob, ImageExpired) as error:
            raise BadImage(f"{name}: {error.message}") from error


def _text_bytes(body: Body, uploads: Collection[str]) -> int:
    """The size of a request without its images and files."""
    if not any(isinstance(body.values.get(name), str) for name in uploads):
        return body.text_bytes
    # Not the size of the body less that of its base64: escapes such as \/ and \r\n make that longer as it is sent.
    others = {name: value for name, value in body.values.items() if name not in uploads}
    return min(body.text_bytes, len(json.dumps(others, ensure_ascii=False).encode("utf-8", "replace")))
