"""Request bodies as every API reads them: UTF-8 JSON, one object, with every field once."""

from __future__ import annotations

import codecs
import json
import math
from typing import Any

from pydantic_core import from_json

from bridge import logs
from bridge.contract import InvalidRequest, NotJson, shorten, shown

REASON_CHARS = 300
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte-order marks of other encodings. UTF-32 comes first: its mark begins with that of UTF-16."""


def parse_body(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises NotJson or InvalidRequest."""
    data = _as_utf8(data)
    try:
        body = from_json(data, allow_inf_nan=False)
        if isinstance(body, dict):
            _refuse_repeated_names(data, body)
    except (ValueError, RecursionError) as error:
        reason = shorten(str(error), REASON_CHARS) if str(error) else "it is nested too deeply"
        raise NotJson(f"the body is not JSON: {reason}") from error
    logs.keep_private(body)
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(body).__name__}")
    return body


def _as_utf8(data: bytes) -> bytes:
    """The text without its UTF-8 byte-order mark, which Windows programs write. Raises NotJson for other encodings."""
    if data.startswith(codecs.BOM_UTF8):
        return data[len(codecs.BOM_UTF8) :]
    encoding = next((name for mark, name in _OTHER_MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:2]:  # JSON has no NUL; ASCII in UTF-16 has one here.
        encoding = "UTF-16 or UTF-32"
    if encoding is not None:
        raise NotJson(f"the body is {encoding}; send JSON as UTF-8")
    return data


def _refuse_repeated_names(data: bytes, body: object) -> None:
    """Raise ValueError if an object names a field twice: readers differ in which of the two counts."""
    strings, quotes = _count(body)
    if data.count(b'"') - quotes == 2 * strings and b"\\u0022" not in data:
        return  # Every string of the text is in the body. Reading an image of 100 MB twice would take a second.
    json.loads(data, object_pairs_hook=_check_names)


def _count(value: object) -> tuple[int, int]:
    """The number of strings in a JSON value, names included, and of quotation marks in them.

    Raises ValueError for a number such as 1e400, which JSON allows and a float cannot hold.
    """
    if isinstance(value, str):
        return 1, value.count('"')
    if isinstance(value, dict):
        parts = [_count(each) for pair in value.items() for each in pair]
    elif isinstance(value, list):
        parts = [_count(each) for each in value]
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it has a number that is too large")
    else:
        return 0, 0
    return sum(strings for strings, _ in parts), sum(quotes for _, quotes in parts)


def _check_names(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"the field {shown(name)} is given twice")
        seen.add(name)
