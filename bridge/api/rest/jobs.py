"""The endpoints for existing jobs: states, lists, images and cancellation."""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple

from aiohttp import web

from bridge.api.http.operations import NAME_SCHEMA, Answer, Query, operation
from bridge.api.http.queries import read_time
from bridge.api.http.replies import GENERATION, INDEX, job_id_of, reply
from bridge.contract import (
    JOB_ID_PATTERN,
    CancelAnswer,
    JobPage,
    JobState,
    JobStatus,
    RangeNotSatisfiable,
    Unavailable,
    UnknownJob,
    UnreadableRecord,
    shorten,
)
from bridge.gateway.index import Entry, JobIndex

DEFAULT_PAGE = 50
MAX_PAGE = 200
INDEX_WAIT_S = 10.0
CURSOR = re.compile(r"([0-9]{1,11}(?:\.[0-9]{1,9})?)_(" + JOB_ID_PATTERN.strip("^$") + ")")
TIME_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": 32503680000, "x-hint": ", in seconds since the epoch"},
        {"type": "string", "format": "date-time"},
    ]
}
FILTERS = (
    Query("status", {"type": "string", "enum": [status.value for status in JobStatus]}, "Only jobs in this state."),
    Query("mode", NAME_SCHEMA, "Only jobs of this mode."),
    Query("model", NAME_SCHEMA, "Only jobs of this model."),
    Query("since", TIME_SCHEMA, "Only jobs submitted at or after this time: seconds since the epoch, or ISO 8601."),
    Query("until", TIME_SCHEMA, "Only jobs submitted before this time."),
    Query(
        "limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}, f"Jobs on a page ({DEFAULT_PAGE} by default)."
    ),
    Query(
        "cursor",
        {"type": "string", "pattern": f"^{CURSOR.pattern}$", "x-hint": "is not the next_cursor of a page"},
        "`next_cursor` of the previous page.",
    ),
)

routes = web.RouteTableDef()


class Filter(NamedTuple):
    """The filters of a list. None: any."""

    status: str | None
    mode: str | None
    model: str | None
    since: float | None
    until: float | None

    def takes(self, entry: Entry) -> bool:
        return (
            self.status in (None, entry.status.value)
            and self.mode in (None, entry.key.mode)
            and self.model in (None, entry.key.model)
            and (self.since is None or entry.submitted_at >= self.since)
            and (self.until is None or entry.submitted_at < self.until)
        )


@routes.get("/v1/jobs")
@operation(
    "List jobs, newest first",
    answers={200: Answer("A page of jobs.", JobPage, links={"list_jobs": {"cursor": "$response.body#/next_cursor"}})},
    errors=(422, 503),
    parameters=FILTERS,
)
async def list_jobs(request: web.Request) -> web.Response:
    """Jobs, newest first, in pages."""
    query, index = request.query, request.app[INDEX]
    since, until = (read_time(query[name]) if name in query else None for name in ("since", "until"))
    wanted = Filter(query.get("status"), query.get("mode"), query.get("model"), since, until)
    limit = int(query.get("limit", DEFAULT_PAGE))
    before = _read_cursor(query["cursor"]) if "cursor" in query else None
    if not await index.complete(INDEX_WAIT_S):
        raise Unavailable("the list of jobs is still loading; try again")
    return reply(await _page(request, index, wanted, before, limit))


async def _page(
    request: web.Request, index: JobIndex, wanted: Filter, before: tuple[float, str] | None, limit: int
) -> JobPage:
    found: list[Entry] = []
    for entry in index.newest_first(before):
        if wanted.since is not None and entry.submitted_at < wanted.since:
            break
        if wanted.takes(entry):
            found.append(entry)
            if len(found) > limit:
                break
    more = found[limit - 1] if len(found) > limit else None
    states = await asyncio.gather(*(_state(request, entry.job_id) for entry in found[:limit]))
    return JobPage(
        jobs=[
            await request.app[GENERATION].exports.linked(index.view(state))
            for state in states
            if isinstance(state, JobState)
        ],
        next_cursor=None if more is None else _write_cursor(more.submitted_at, more.job_id),
        unreadable=sum(isinstance(state, UnreadableRecord) for state in states),
    )


async def _state(request: web.Request, job_id: str) -> JobState | UnreadableRecord | None:
    try:
        return await request.app[GENERATION].queue.state(job_id)
    except UnknownJob:  # The retention has removed it.
        return None
    except UnreadableRecord as error:
        return error


def _write_cursor(submitted_at: float, job_id: str) -> str:
    return f"{submitted_at:.9f}".rstrip("0").rstrip(".") + f"_{job_id}"


def _read_cursor(text: str) -> tuple[float, str]:
    match = CURSOR.fullmatch(text)
    assert match, "the query was checked"
    return float(match[1]), match[2]


@routes.get("/v1/jobs/{job_id}")
@operation(
    "Get the state of a job, with its position or progress",
    answers={200: Answer("The state.", JobState)},
    errors=(404, 503),
)
async def job_state(request: web.Request) -> web.Response:
    """The state of a job."""
    generation = request.app[GENERATION]
    state = await generation.exports.linked(await generation.queue.state(job_id_of(request)))
    return reply(request.app[INDEX].view(state), headers={"Cache-Control": "no-store"})


@routes.delete("/v1/jobs/{job_id}")
@operation(
    "Cancel a job that waits or runs",
    answers={200: Answer("The job, and the outcome of the cancellation.", CancelAnswer)},
    errors=(404, 503),
)
async def cancel_job(request: web.Request) -> web.Response:
    """Cancel this job only. A job that has ended stays as it is."""
    return reply(await request.app[GENERATION].cancel(job_id_of(request)))


@routes.get("/v1/jobs/{job_id}/images/{index}")
@operation(
    "Get an image of a job",
    answers={
        200: Answer(
            "The image.", media="*/*", headers={"ETag": "The SHA-256 of the image.", "Accept-Ranges": "`bytes`"}
        ),
        206: Answer(
            "A part of the image.",
            media="*/*",
            headers={"ETag": "The SHA-256 of the image.", "Content-Range": "The range of this part."},
        ),
        304: Answer("The image matches If-None-Match.", media=None, headers={"ETag": "The SHA-256 of the image."}),
    },
    errors=(404, 410, 416, 503),
    parameters=[
        Query("Range", {"type": "string"}, "One range of bytes, such as `bytes=0-1023`.", where="header"),
        Query("If-None-Match", {"type": "string"}, "An ETag that the client has.", where="header"),
        Query(
            "If-Range",
            {"type": "string"},
            "The ETag that the Range applies to; otherwise the whole image is sent.",
            where="header",
        ),
    ],
)
async def job_image(request: web.Request) -> web.Response:
    """One image of a job, counted from 0."""
    generation = request.app[GENERATION]
    state = await generation.queue.state(job_id_of(request))
    text = request.match_info["index"]
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and int(text) < len(state.images)):
        raise UnknownJob(
            f"job {state.job_id} is {state.status} and has {len(state.images)} images; there is no image "
            f"{shorten(text)}"
        )
    image = state.images[int(text)]
    etag = f'"{image.digest.removeprefix("SHA-256=")}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=3600, immutable", "Accept-Ranges": "bytes"}
    if _names(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers=headers)
    data = await generation.exports.image(image)
    media = image.media_type
    whole = request.headers.get("If-Range", etag) != etag
    part = None if whole else _range(request.headers.get("Range"), len(data))
    if part is None:
        return web.Response(body=data, content_type=media, headers=headers)
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(data)}"
    return web.Response(status=206, body=data[part.start : part.stop], content_type=media, headers=headers)


def _names(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header matches the image. The comparison is weak (RFC 9110, 13.1.2)."""
    given = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in given or "*" in given


def _range(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for; None for the whole image. Raises RangeNotSatisfiable.

    Multiple ranges, other units and malformed headers are ignored, as RFC 9110 (14.2) allows.
    """
    unit, _, text = (header or "").partition("=")
    first, dash, last = text.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not (first + last).isdecimal() or not (first + last).isascii():
        return None
    if len(text) > 40:
        return None
    if not first:  # The last bytes.
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise RangeNotSatisfiable(f"the range {shorten(text)} is outside the image, which has {size} bytes")
    return range(start, stop)
