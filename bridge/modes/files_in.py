"""Files in requests, for the File parameters of a mode: the kind of each, by its content.

The caller's file name is ignored: base64 has none, and no text of a request ever names a file of the service. Files
are sent and stored in the same ways as images (`bridge.modes.images_in`).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence

from bridge.modes.images_in import BadImage, InputImage

FILE_KINDS = ("zip", "safetensors", "json", "txt", "png", "jpg", "webp")
"""The kinds of file that can be recognised, by extension."""
_MAGIC = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg"}
ZIP_END, ZIP_END_BYTES = b"PK\x05\x06", 65_557
"""The record at the end of a zip file, and where it may begin: it ends in a comment of up to 64 KiB."""
MAX_CONTENTS_BYTES = 4 * 1024 * 1024
"""The largest list of contents of a zip file: some 40,000 files with long names."""
MAX_PARSED_BYTES = 4 * 1024 * 1024
"""A larger JSON file is known by its first and its last character: as Python objects it would take gigabytes."""
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""


def check(data: bytes, max_bytes: int, accept: Sequence[str]) -> InputImage:
    """The file, if its kind is in `accept` (empty: any known kind). Slow for large files. Raises BadImage."""
    if len(data) > max_bytes:
        raise BadImage(f"has {len(data)} bytes; at most {max_bytes} are allowed")
    kind = kind_of(data)
    wanted = " or ".join(accept or FILE_KINDS)
    if kind is None:
        raise BadImage(f"is a file of an unknown kind; send {wanted}")
    if accept and kind not in accept:
        raise BadImage(f"is a {kind} file; send {wanted}")
    return InputImage(data, kind)


def kind_of(data: bytes) -> str | None:
    """The kind of a file, by its content; None if it is not known. Raises BadImage for a damaged zip."""
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return _readable_zip(data) if kind == "zip" else kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    header_bytes = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and 2 <= header_bytes <= min(len(data) - 8, MAX_HEADER_BYTES):
        return "safetensors"
    return _kind_of_text(data)


def _readable_zip(data: bytes) -> str:
    end = data.rfind(ZIP_END, -ZIP_END_BYTES)
    contents = int.from_bytes(data[end + 12 : end + 16], "little") if end >= 0 else 0
    if contents > MAX_CONTENTS_BYTES:
        # Reading the list takes many times its size.
        raise BadImage(
            f"is a zip file with a list of contents of {contents} bytes; at most {MAX_CONTENTS_BYTES} are read"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise BadImage(f"is a zip file that cannot be read: {error}") from error
    return "zip"


def _kind_of_text(data: bytes) -> str | None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not text or "\0" in text:
        return None
    if text.lstrip()[:1] in ("{", "["):
        if len(data) > MAX_PARSED_BYTES:
            return "json" if text.rstrip()[-1:] in ("}", "]") else "txt"
        try:
            json.loads(text)
            return "json"
        except (ValueError, RecursionError):
            return "txt"
    return "txt"
