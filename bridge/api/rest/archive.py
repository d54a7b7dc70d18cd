"""All files of a job as one zip: written while it is sent, one file in memory at a time."""

from __future__ import annotations

import asyncio
import io
import re
import zipfile
from collections.abc import Sequence

from aiohttp import web

from bridge.api.http.operations import Answer, operation
from bridge.api.http.replies import GENERATION, job_id_of
from bridge.contract import ImageObject, JobState, UnknownJob, extension_of
from bridge.gateway.s3 import Exports

CHUNK_BYTES = 256 * 1024
SEND_TIMEOUT_S = 120.0
"""A reader that accepts nothing for this long counts as gone."""
MEDIA = "application/zip"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the zip, so that the same job gives the same bytes."""

routes = web.RouteTableDef()


class _Pipe(io.RawIOBase):
    """What zipfile has written and nobody has taken yet. It cannot seek, so zipfile puts sizes behind each file."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self._parts.append(bytes(data))  # pyright: ignore[reportArgumentType] - any buffer
        return len(self._parts[-1])

    def take(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def names_of(images: Sequence[ImageObject]) -> list[str]:
    """The names in the zip: `1.png`, `2.png`, …, with the name of the result where the graph has several."""
    width = len(str(len(images)))
    several = len({image.result for image in images}) > 1
    names: list[str] = []
    for number, image in enumerate(images, start=1):
        result = re.sub(r"[^\w.-]+", "-", image.result).strip("-.") if several else ""
        names.append(f"{number:0{width}}{'-' + result if result else ''}.{extension_of(image.name) or 'bin'}")
    return names


@routes.get("/v1/jobs/{job_id}/images.zip")
@operation(
    "Get all files of a job as a zip",
    answers={
        200: Answer(
            "The files, each with its number as its name; stored, as images are compressed already.",
            media=MEDIA,
            headers={"Content-Disposition": "A file name: the job's id."},
        )
    },
    errors=(404, 410, 503),
)
async def job_archive(request: web.Request) -> web.StreamResponse:
    """The images and other files of a job that is done."""
    generation = request.app[GENERATION]
    state = await generation.queue.state(job_id_of(request))
    if not state.images:
        raise UnknownJob(f"job {state.job_id} is {state.status.value} and has no images")
    headers = {
        "Content-Type": MEDIA,
        "Content-Disposition": f'attachment; filename="{state.job_id}.zip"',
        "Cache-Control": "private, max-age=3600",
    }
    if request.method == "HEAD":
        return web.Response(headers=headers)
    first = await generation.exports.image(state.images[0])  # Before the answer begins: an expired image is a 410.
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    try:
        await _send(response, generation.exports, state, first)
    except (ConnectionError, TimeoutError):
        pass  # The reader left, or accepts nothing.
    except Exception:
        # A zip that ends early must not look whole: no last chunk.
        if request.transport is not None:
            request.transport.abort()
        raise
    return response


async def _send(response: web.StreamResponse, exports: Exports, state: JobState, first: bytes) -> None:
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for index, (name, image) in enumerate(zip(names_of(state.images), state.images, strict=True)):
            data = first if index == 0 else await exports.image(image)
            first = b""
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.file_size = len(data)
            with archive.open(entry, "w") as file:
                for start in range(0, len(data), CHUNK_BYTES):
                    file.write(data[start : start + CHUNK_BYTES])
                    await _write(response, pipe.take())
            await _write(response, pipe.take())
    await _write(response, pipe.take())
    await response.write_eof()


async def _write(response: web.StreamResponse, data: bytes) -> None:
    if data:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await response.write(data)
