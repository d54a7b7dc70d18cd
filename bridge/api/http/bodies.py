"""Reading the body of a generate request: JSON, or a form with images as parts, never more than the limits."""

from __future__ import annotations

from typing import Any

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from bridge.api.http.limits import BODY, BODY_MEMORY
from bridge.api.limits import BodyLease
from bridge.api.parsing import parse_body
from bridge.contract import BadForm, BodyTooLarge, UnsupportedMediaType, shorten, shown
from bridge.gateway.requests import Body, FormText, Limits

JSON = "application/json"
FORM = "multipart/form-data"
MAX_PARTS = 64
IMAGES_AT_ONCE = 4
"""The number of images of the largest size in one request, besides one file of the largest size."""
REQUEST_PART = "request"
"""The form part that may hold the whole request as JSON; other parts are single fields."""
CHUNK_BYTES = 256 * 1024
ENCODINGS = ("", "identity", "gzip", "deflate")
UTF8 = ("utf-8", "utf8", "us-ascii", "ascii")
PLAIN = ("binary", "8bit", "7bit")


async def read_body(request: web.Request, limits: Limits) -> Body:
    """Read the body. Raises UnsupportedMediaType, BodyTooLarge, TooManyBodies, NotJson, BadForm or InvalidRequest.

    The body counts as in memory until `release_body`, or the end of the request.
    """
    # Base64 takes four bytes for three.
    most = limits.body_bytes + (IMAGES_AT_ONCE * limits.image.max_bytes + limits.file_bytes) * 4 // 3
    if request.content_length is not None and request.content_length > most:
        raise BodyTooLarge(f"the body has {request.content_length} bytes; at most {most} are allowed")
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ENCODINGS:  # aiohttp hands out a body in an encoding that it does not know as it came.
        raise UnsupportedMediaType(f"Content-Encoding {shorten(encoding)} is not known; send gzip, deflate, or none")
    lease = request[BODY] = request.app[BODY_MEMORY].lease(request.content_length)
    if request.content_type in (JSON, FORM):
        _check_charset(request.content_type, request.charset)
    if request.content_type == JSON:
        data = await _read(request, most, lease)
        return Body(parse_body(data), text_bytes=len(data))
    if request.content_type == FORM:
        return await _read_form(request, limits, lease)
    given = shorten(request.headers.get("Content-Type") or "none")
    raise UnsupportedMediaType(f"Content-Type is {given}; send {JSON} or {FORM}")


def _check_charset(media_type: str, charset: str | None) -> None:
    if charset is not None and charset.strip("'\"").lower() not in UTF8:
        raise UnsupportedMediaType(f"the charset of the {media_type} body is {shorten(charset)}; send UTF-8")


async def _read(request: web.Request, most: int, lease: BodyLease) -> bytes:
    data = bytearray()
    async for chunk in request.content.iter_chunked(CHUNK_BYTES):
        lease.count(len(chunk))
        data += chunk
        if len(data) > most:
            raise BodyTooLarge(f"the body has more than {most} bytes")
    return bytes(data)


async def _read_form(request: web.Request, limits: Limits, lease: BodyLease) -> Body:
    values: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    seen: set[str] = set()
    text_bytes = 0
    try:
        reader = await request.multipart()
        for _ in range(MAX_PARTS + 1):
            part = await reader.next()
            if part is None:
                if twice := sorted(whole.keys() & (values.keys() | files.keys())):
                    raise BadForm(f"{shown(twice[0])} is in the part {REQUEST_PART} and a part of its own")
                return Body({**whole, **values}, files, text_bytes, is_form=True)
            if not isinstance(part, BodyPartReader) or not part.name:
                raise BadForm("every part of the form needs its own name (Content-Disposition: form-data; name=…)")
            encoding = part.headers.get("Content-Transfer-Encoding", "binary")
            if part.headers.get("Content-Encoding") or encoding not in PLAIN:
                raise BadForm(f"the part {shown(part.name)} is encoded; send its bytes unencoded")
            if part.name in seen:
                raise BadForm(f"the form has two parts named {shown(part.name)}")
            seen.add(part.name)
            is_file = part.name != REQUEST_PART and (part.filename is not None or _is_image(part))
            data = await _read_part(part, _most_bytes(part, limits) if is_file else limits.body_bytes, lease)
            if is_file:
                if data or part.filename:  # Browsers send an empty part for a field without a file.
                    files[part.name] = data
            elif part.name == REQUEST_PART:
                whole = parse_body(data)
                text_bytes += len(data)
            else:
                _check_charset("form's", part.get_charset("utf-8"))
                # A field that is left empty is null, as it is in JSON.
                values[part.name] = FormText(data.decode("utf-8")) if data else None
                text_bytes += len(data)
    except UnicodeDecodeError as error:
        raise BadForm(f"a text of the form is not UTF-8: {error}") from error
    except (
        ValueError,
        AssertionError,
        RuntimeError,
        HttpProcessingError,
    ) as error:  # Raised by aiohttp for malformed forms.
        raise BadForm(f"the form cannot be read: {shorten(str(error) or type(error).__name__, 300)}") from error
    raise BadForm(f"the form has more than {MAX_PARTS} parts")


def _is_image(part: BodyPartReader) -> bool:
    return part.headers.get("Content-Type", "").startswith("image/")


def _most_bytes(part: BodyPartReader, limits: Limits) -> int:
    """The size limit of a file part. Without an image type it may still be an image; the mode decides."""
    return limits.image.max_bytes if _is_image(part) else max(limits.image.max_bytes, limits.file_bytes)


async def _read_part(part: BodyPartReader, most: int, lease: BodyLease) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(CHUNK_BYTES):
        lease.count(len(chunk))
        data += chunk
        if len(data) > most:
            raise BodyTooLarge(f"the part {shown(part.name)} has more than {most} bytes", field=part.name)
    return bytes(data)
