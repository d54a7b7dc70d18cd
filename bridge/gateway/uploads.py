"""The images and files of a request: read, checked against the mode's parameters, and stored for the worker."""

from __future__ import annotations

from collections.abc import Mapping

from bridge.broker.jobs import JobQueue
from bridge.contract import BodyTooLarge, ErrorDetail, ImageExpired, UnknownJob
from bridge.gateway.image_urls import ImageUrls, is_url
from bridge.gateway.requests import Body, Limits
from bridge.modes import files_in, images_in
from bridge.modes.images_in import BadImage, InputImage, JobImage
from bridge.modes.library import Mode
from bridge.modes.parameters import UPLOADS, Parameter, ParameterKind

KIND_NAMES = {ParameterKind.IMAGE: "an image", ParameterKind.FILE: "a file"}
"""What error messages call the value of a parameter."""


class Uploads:
    """Reads and stores the uploads of one gateway's requests."""

    def __init__(self, queue: JobQueue, limits: Limits, urls: ImageUrls) -> None:
        self._queue = queue
        self._limits = limits
        self._urls = urls

    async def read(self, body: Body, mode: Mode) -> tuple[dict[str, InputImage], list[ErrorDetail]]:
        """The uploads of a request by parameter, and what is wrong with those that cannot be used.

        Raises BodyTooLarge and Unavailable.
        """
        images: dict[str, InputImage] = {}
        problems: list[ErrorDetail] = []
        wanted = {name: parameter for name, parameter in mode.parameters.items() if parameter.kind in UPLOADS}
        text_bytes = body.text_bytes - sum(len(v) for name in wanted if isinstance(v := body.values.get(name), str))
        if text_bytes > self._limits.body_bytes:
            raise BodyTooLarge(
                f"the body has {text_bytes} bytes besides its images and files; the limit (max_body_bytes) is "
                f"{self._limits.body_bytes}"
            )
        for name in sorted(body.files.keys() - wanted.keys()):
            message = f"mode {mode.name} takes no image or file {name!r}; it takes {', '.join(wanted) or 'none'}"
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
            await self._queue.inputs.put(reference.name, image.data)

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
        data = images_in.read_text(value, wanted)
        return await self._image_of(data) if isinstance(data, JobImage) else data

    async def _checked(self, data: bytes, parameter: Parameter) -> InputImage:
        """The upload, if the parameter can take it. Raises BadImage."""
        if parameter.kind is ParameterKind.IMAGE:
            return await images_in.check(data, self._limits.image)
        return await files_in.check(data, self._limits.file_bytes, parameter.accept)

    async def _image_of(self, place: JobImage) -> bytes:
        """An image of an earlier job. Raises BadImage and Unavailable."""
        name = f"job:{place.job_id}/{place.index}"
        try:
            state = await self._queue.state(place.job_id)
            if place.index >= len(state.images):
                raise BadImage(f"{name}: that job is {state.status.value} and has {len(state.images)} images")
            return await self._queue.image(state.images[place.index])
        except (UnknownJob, ImageExpired) as error:
            raise BadImage(f"{name}: {error.message}") from error
