"""Images in requests, for the Image parameters of a mode: reading and checking them, and references to stored ones.

A request sends an image as a form part, as base64, as a data URL, or as `job:<id>/<n>`, an image of an earlier job.
The job's parameters hold a reference to the object store; no text of a request ever names a file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from bridge.contract import JOB_ID_PATTERN, ImageObject, shown

DATA_URL = re.compile(r"\s*data:(?P<head>(?:\"[^\"]{0,500}\"|[^,\"]){0,500}),", re.IGNORECASE)
"""The beginning of a data URL (RFC 2397). A parameter may be quoted."""
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\r\n\f\v"
JOB_IMAGE = re.compile(f"job:({JOB_ID_PATTERN.strip('^$')})/([0-9]{{1,3}})")
INPUT = re.compile(
    f"input:(?P<name>{JOB_ID_PATTERN.strip('^$')}/\\w+\\.(?:png|jpg|webp|zip|safetensors|json|txt))"
    "#(?P<size>[0-9]{1,12})\\.(?P<sha256>[0-9a-f]{64})"
)
"""A reference to an image or file in the object store, as it stands in a job's parameters."""
WAYS = "send it as a part of a multipart/form-data body, as base64, as a data URL, or as job:<id>/<n>"


class BadImage(ValueError):
    """An upload that cannot be used. The message says why, without the name of the parameter."""


@dataclass(frozen=True)
class JobImage:
    """An image of an earlier job."""

    job_id: str
    index: int


@dataclass(frozen=True)
class ImageLimits:
    """Limits of one uploaded image: bytes as sent, and pixels when decoded; and the pixels of all that are decoded at
    once."""

    max_bytes: int
    max_pixels: int
    max_decoded_pixels: int = 64 * 1024 * 1024


@dataclass(frozen=True)
class InputImage:
    """An uploaded image that can be decoded, or a file of a known kind. `extension` follows from its format."""

    data: bytes
    extension: str

    def reference(self, job_id: str, parameter: str) -> str:
        """The reference to it in the parameters of the job."""
        sha256 = hashlib.sha256(self.data).hexdigest()
        return f"input:{job_id}/{parameter}.{self.extension}#{len(self.data)}.{sha256}"


def read_text(text: object, wanted: str = "an image") -> bytes | JobImage:
    """The bytes of a base64 text or data URL, or the job image that the text names. Raises BadImage.

    `wanted` is what the parameter takes: "an image" or "a file".
    """
    if not isinstance(text, str):
        raise BadImage(f"must be a string, not {type(text).__name__}: {WAYS}")
    if match := JOB_IMAGE.fullmatch(text):
        return JobImage(match[1], int(match[2]))
    payload = text
    if url := DATA_URL.match(text):
        if not re.search(r";\s*base64\s*$", url["head"], re.IGNORECASE):
            raise BadImage("is a data URL without ;base64; encode it as base64")
        payload = text[url.end() :]
        if "%" in payload:
            payload = unquote(payload)
    try:
        data = _decode_base64(payload)
    except ValueError as error:
        raise BadImage(f"{shown(text, 40)} is not {wanted}: {WAYS}") from error
    if not data:
        raise BadImage(f"is empty: {WAYS}")
    return data


def _decode_base64(text: str) -> bytes:
    """Base64 as programs write it: with line breaks, without padding, in the URL-safe alphabet. Raises ValueError."""
    data = text.encode("ascii").translate(_TO_STANDARD, _WHITE_SPACE)
    bare = data.rstrip(b"=")
    if len(data) - len(bare) > 2:
        raise ValueError("too much padding")
    return binascii.a2b_base64(bare + b"=" * (-len(bare) % 4), strict_mode=True)


def stored(reference: Any, bucket: str) -> ImageObject | None:
    """The stored image that a reference in a job's parameters names; None for any other value."""
    match = INPUT.fullmatch(reference) if isinstance(reference, str) else None
    if match is None:
        return None
    digest = base64.urlsafe_b64encode(bytes.fromhex(match["sha256"])).decode()
    return ImageObject(bucket=bucket, name=match["name"], size=int(match["size"]), digest=f"SHA-256={digest}")


def is_reference(value: Any) -> bool:
    """Whether a value of a job's parameters is a reference to the object store."""
    return isinstance(value, str) and INPUT.fullmatch(value) is not None
