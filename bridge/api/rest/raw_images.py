"""The image itself as the answer, for a request whose `Accept` header prefers an image type to JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from aiohttp import web

from bridge.api.http.prefix import prefix_of
from bridge.api.http.replies import GENERATION
from bridge.contract import (
    DEFAULT_MODE,
    IMAGE_FORMATS,
    BridgeError,
    ImageFormat,
    JobState,
    format_of,
    shorten,
)
from bridge.gateway.requests import Body
from bridge.modes.images_in import BadImage

JSON = "application/json"
TYPES: dict[str, ImageFormat] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
"""The formats by media type, the first preferred where a client has no preference."""
MEDIA_RANGE = re.compile(r"\s*([A-Za-z0-9!#$&^_.+*-]+/[A-Za-z0-9!#$&^_.+*-]+)\s*((?:;[^,]*)?)\s*")
QUALITY = re.compile(r";\s*q\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*(?=;|$)", re.IGNORECASE)
WARNINGS_CHARS = 4000
SAFE = " !\"#$&'()*+,/:;<=>?@[]^`{|}~"
"""What stays as it is in a header; the names of modes and models may hold anything else."""


class NotAcceptable(BridgeError):
    """No answer of a type that the client accepts."""

    status, code = 406, "not_acceptable"


def wanted_formats(request: web.Request) -> list[ImageFormat]:
    """The image formats that the client prefers to JSON, best first; empty: it takes JSON. Raises NotAcceptable."""
    header = ",".join(request.headers.getall("Accept", []))
    ranges = _ranges(header)
    if not ranges:  # no header, or none that says anything
        return []
    qualities = {media: _quality(media, ranges) for media in (JSON, *TYPES)}
    best = max(qualities.values())
    if best == 0:
        types = ", ".join(qualities)
        raise NotAcceptable(f"Accept is {shorten(header)}; this endpoint answers with one of {types}")
    if qualities[JSON] == best:
        return []
    return sorted(
        (TYPES[media] for media in TYPES if qualities[media] > 0), key=lambda each: -qualities[f"image/{each}"]
    )


def _ranges(header: str) -> dict[str, float]:
    """The qualities of the media ranges. What cannot be read is left out, as RFC 9110 advises."""
    found: dict[str, float] = {}
    for part in header.split(","):
        if match := MEDIA_RANGE.fullmatch(part):
            quality = QUALITY.search(match[2])
            found[match[1].lower()] = float(quality[1]) if quality else 1.0
    return found


def _quality(media: str, ranges: dict[str, float]) -> float:
    """The most specific range counts (RFC 9110, 12.5.1)."""
    kind = media.partition("/")[0]
    return next((ranges[name] for name in (media, f"{kind}/*", "*/*") if name in ranges), 0.0)


def with_format(request: web.Request, body: Body, formats: Sequence[ImageFormat]) -> Body:
    """The body, made in the format that the client prefers, where its mode can do that and the body names no other."""
    modes, name = request.app[GENERATION].modes, body.values.get("mode")
    if body.values.get("output_format") is not None or not (name is None or isinstance(name, str)):
        return body
    mode = modes.get(name or DEFAULT_MODE)
    if "output_format" not in mode.parameters:
        return body
    values = {**body.values, "output_format": formats[0]}
    return Body(values, body.files, body.text_bytes, body.is_form)


async def raw_image(
    request: web.Request, state: JobState, formats: Sequence[ImageFormat], more: dict[str, str]
) -> web.Response:
    """The first image of a job that is done, in one of the formats. Raises NotAcceptable, ImageExpired, Unavailable."""
    generation = request.app[GENERATION]
    index, image = next(
        ((n, each) for n, each in enumerate(state.images) if format_of(each.name) in IMAGE_FORMATS), (0, None)
    )
    place = f"{prefix_of(request)}/v1/jobs/{quote(state.job_id)}/images/{index}"
    if image is None:
        raise NotAcceptable(f"job {state.job_id} is {state.status.value} and has no image; see {place} for its files")
    data, made = await generation.exports.image(image), format_of(image.name)
    if made not in formats:
        try:
            data, made = await generation.decoder.converted(data, formats[0]), formats[0]
        except BadImage as error:
            raise NotAcceptable(f"the image {place} {error}") from error
    given: dict[str, Any] = {
        "Imagegen-Job": state.job_id,
        "Imagegen-Mode": state.mode,
        "Imagegen-Model": state.model,
        "Imagegen-Seed": state.parameters.get("seed"),
        "Imagegen-Images": len(state.images),
        "Content-Disposition": f'inline; filename="{state.job_id}.{"jpg" if made == "jpeg" else made}"',
        "Content-Location": place,
        "Vary": "Accept",
    }
    headers = {name: quote(str(value), safe=SAFE) for name, value in given.items() if value is not None}
    if state.warnings:
        headers["Imagegen-Warnings"] = _warnings(state.warnings)
    return web.Response(body=data, content_type=f"image/{made}", headers={**headers, **more})


def _warnings(warnings: Sequence[str]) -> str:
    """The warnings as a JSON list in ASCII: as many as fit."""
    while len(text := json.dumps(list(warnings))) > WARNINGS_CHARS:
        warnings = warnings[:-1]
    return text
