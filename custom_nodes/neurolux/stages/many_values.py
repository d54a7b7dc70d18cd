"""Lists that a person types: prompts, seeds, and the values along one side of a grid. Pure text work.

Here it is only read: whether a model can take a value is decided where the image is generated, so that one bad value
costs one image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InvalidParameter

MOST_IMAGES = 64
"""Of one run of Generate Batch or Generate Grid; all of them are in memory at its end."""
MOST_PROMPT_CHARACTERS = 10_000
COMBINE_CHOICES = ("every", "pairs")
SETTINGS = {
    "prompt": "prompt",
    "seed": "seed",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "size": "size",
    "lora_strength": "LoRA strength",
    "model": "model",
}
"""What a grid can vary, by the name of the request's field, and what it is called on the sheet."""
NOT_USED = "none"
RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")
SIZE = re.compile(r"(\d+)(?:\s*[xX×]\s*(\d+))?")
SHOWN = 40


@dataclass(frozen=True)
class Line:
    """One prompt and its number among those of the list, counted from 1."""

    number: int
    text: str


def prompt_lines(text: str) -> list[Line]:
    """The prompts of ``text``, one a line; empty lines do not count. Raises InvalidParameter where there is none."""
    lines = [line.strip() for line in text.splitlines()]
    found = [Line(number, line) for number, line in enumerate(filter(None, lines), 1)]
    if not found:
        raise InvalidParameter("prompts", "prompts is empty; write one prompt a line")
    return found


def pieces(text: str) -> list[str]:
    """The values of ``text``: one a line where it has several lines, else between commas."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts = lines if len(lines) > 1 else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def whole_numbers(field: str, text: str) -> list[int]:
    """Numbers and ranges such as ``1-4, 9``, between commas or on lines of their own. Raises InvalidParameter."""
    found: list[int] = []
    for part in (part.strip() for part in re.split(r"[,\n]", text) if part.strip()):
        bounds = RANGE.fullmatch(part)
        if bounds is None and not (part.isascii() and part.isdigit()):
            raise InvalidParameter(
                field, f"{field}: {part!r} is neither a number nor a range; write for example 1-4, 9"
            )
        first, last = (int(bounds[1]), int(bounds[2])) if bounds else (int(part), int(part))
        if last < first:
            raise InvalidParameter(field, f"{field}: the range {part} runs backwards; write {last}-{first}")
        check_count(field, len(found) + last - first + 1)
        found.extend(range(first, last + 1))
    if not found:
        raise InvalidParameter(field, f"{field} is empty; write numbers and ranges such as 1-4, 9")
    return found


def check_count(field: str, count: int) -> None:
    """Raise InvalidParameter for more images than one run makes."""
    if count > MOST_IMAGES:
        raise InvalidParameter(
            field, f"{field}: {count} images are more than the {MOST_IMAGES} of one job; send several jobs"
        )


def combined(lines: Sequence[Line], seeds: Sequence[int], combine: str) -> list[tuple[Line, int]]:
    """Each prompt with each seed (``every``: prompt by prompt), or the first with the first and so on (``pairs``).

    Raises InvalidParameter for lists of different lengths that are to be pairs, and for too many images.
    """
    if combine not in COMBINE_CHOICES:
        raise InvalidParameter("combine", f"combine {combine!r} is not known; use {' or '.join(COMBINE_CHOICES)}")
    if combine == "every":
        check_count("prompts", len(lines) * len(seeds))
        return [(line, seed) for line in lines for seed in seeds]
    if len(lines) != len(seeds):
        raise InvalidParameter(
            "seeds",
            f"pairs need as many seeds as prompts: there are {len(lines)} prompts and {len(seeds)} seeds; "
            "change one of the lists, or set combine to every",
        )
    check_count("prompts", len(lines))
    return list(zip(lines, seeds, strict=True))


@dataclass(frozen=True)
class Value:
    """One value along a side of a grid."""

    shown: str
    """As the sheet says it, without the setting's name."""
    used: str | int | float | tuple[int, int]


@dataclass(frozen=True)
class Axis:
    """One side of a grid: a setting and what it is set to."""

    setting: str
    values: tuple[Value, ...]

    def label(self, value: Value) -> str:
        """What the sheet says beside a row, or above a column."""
        return value.shown if self.setting in ("prompt", "model") else f"{SETTINGS[self.setting]} {value.shown}"


def read_axis(name: str, setting: str, text: str, prompt: str) -> Axis | None:
    """The side ``name`` (x or y) of a grid; None where it is not used. Raises InvalidParameter.

    Of ``prompt`` the first value is a part that is there, and the others take its place.
    """
    if setting == NOT_USED:
        return None
    field = f"{name}_values"
    if setting not in SETTINGS:
        raise InvalidParameter(
            f"{name}_setting", f"{name}_setting {setting!r} is not known; use {', '.join(SETTINGS)} or {NOT_USED}"
        )
    if setting in ("seed", "num_inference_steps"):
        values = [Value(str(number), number) for number in whole_numbers(field, text)]
    else:
        values = [read_value(field, setting, part) for part in pieces(text)]
    if not values:
        raise InvalidParameter(field, f"{field} is empty; write the values of {setting}, one a line or between commas")
    check_count(field, len(values))
    if setting == "prompt" and str(values[0].used) not in prompt:
        raise InvalidParameter(
            field,
            f"{field}: the prompt does not contain {shortened(values[0].shown)!r}; the first value must be a part of "
            "the prompt, which the others replace",
        )
    return Axis(setting, tuple(values))


def read_value(field: str, setting: str, text: str) -> Value:
    """One value of a setting that has no ranges."""
    match setting:
        case "guidance_scale" | "lora_strength":
            try:
                number = float(text)
            except ValueError:
                number = float("nan")
            if not abs(number) < float("inf"):
                raise InvalidParameter(field, f"{field}: {shortened(text)!r} is not a number; write for example 0.5, 1")
            return Value(f"{number:g}", number)
        case "size":
            size = SIZE.fullmatch(text)
            if size is None:
                raise InvalidParameter(
                    field, f"{field}: {shortened(text)!r} is not a size; write for example 1024 or 1024x768"
                )
            width, height = int(size[1]), int(size[2] or size[1])
            return Value(f"{width} x {height}", (width, height))
        case _:
            return Value(text, text)


def replaced(prompt: str, changes: Sequence[tuple[str, str]]) -> str:
    """``prompt`` with each (part, new text) put in, all at once: what was put in is not looked at again."""
    if not changes:
        return prompt
    new = dict(changes)
    parts = sorted(new, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, parts)), lambda found: new[found[0]], prompt)


def shortened(text: str, longest: int = SHOWN) -> str:
    """``text`` for a sentence: its beginning, where it is long."""
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"
