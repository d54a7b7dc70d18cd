"""Texts from callers: what counts as blank, how numbers are written, and how an error repeats a value."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

SHOWN_CHARS = 80
"""The most characters of a caller's value that an error repeats."""
_INVISIBLE = (
    *("\0 ", "\x7f\xa0", "\xad", "\u034f", "\u0600\u0605", "\u061c", "\u06dd", "\u070f", "\u0890\u0891", "\u08e2"),
    *("\u115f\u1160", "\u1680", "\u17b4\u17b5", "\u180b\u180f", "\u2000\u200f", "\u2028\u202f", "\u205f\u206f"),
    *("\u2800", "\u3000", "\u3164", "\ufe00\ufe0f", "\ufeff", "\uffa0", "\ufff0\ufffb", "\U000110bd", "\U000110cd"),
    *("\U00013430\U0001345f", "\U0001bca0\U0001bca3", "\U0001d173\U0001d17a", "\U000e0000\U000e0fff"),
)
"""First and last character of each range without a glyph: white space, control and format characters, blanks."""
VISIBLE_PATTERN = f"[^{''.join('-'.join(each) for each in _INVISIBLE)}]"
"""Found in every text that shows something. `/openapi.json` has it, so the characters stand in it as they are."""
_VISIBLE = re.compile(VISIBLE_PATTERN)
_WHOLE = re.compile(r"-?[0-9]{1,30}")
_NUMBER = re.compile(r"-?(?:[0-9]{1,30}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,4})?")


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or all of it is white space and invisible characters."""
    return _VISIBLE.search(text) is None


def whole_number(text: str) -> int | None:
    """The integer that a form or a query gives in ASCII digits; None for any other text."""
    return int(text) if _WHOLE.fullmatch(text) else None


def decimal_number(text: str) -> float | None:
    """The finite number that a form or a query gives, as JSON writes it; None for any other text."""
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def shown(value: object, limit: int = SHOWN_CHARS) -> str:
    """A caller's value as an error repeats it: as Python writes it, and never long."""
    if isinstance(value, str | bytes):
        value = value[: limit + 1]  # repr of a text of megabytes takes its time.
    elif isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    try:
        return shorten(repr(value), limit)
    except ValueError:  # Python writes no integer of more than 4300 digits.
        return "a number of thousands of digits"


def shorten(text: str, limit: int = SHOWN_CHARS) -> str:
    """The text, or its beginning and an ellipsis: about `limit` characters. Bytes of a header that are not UTF-8, which
    are surrogates in the text and cannot be sent, are escaped."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def _visible(text: str) -> str:
    if is_blank(text):
        raise PydanticCustomError("blank", "it shows nothing: all of it is white space or invisible")
    return text


def as_whole(value: object) -> object:
    """512.0 as 512: JSON does not tell them apart. Any other value stays as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


VisibleText = Annotated[str, AfterValidator(_visible), Field(json_schema_extra={"pattern": VISIBLE_PATTERN})]
"""A text that shows something."""
