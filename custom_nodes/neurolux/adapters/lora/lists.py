"""A list of LoRAs as a text: one a line, ``file: strength``. Imports neither torch nor ComfyUI."""

from __future__ import annotations

import math

from ...errors import InvalidParameter

NO_LORA = "none"
DEFAULT_STRENGTH = 1.0
COMMENT = "#"
STRENGTH_LIMIT = 4.0


def read_list(text: str) -> list[tuple[str, float]]:
    """Name and strength by line, in order. Raises InvalidParameter, which names the line.

    What follows the last colon is the strength; a file's name may hold colons itself.
    """
    found = []
    for line in (line.strip() for line in text.splitlines()):
        if not line or line.startswith(COMMENT):
            continue
        name, colon, number = (part.strip() for part in line.rpartition(":"))
        if not colon:
            name, number = line, str(DEFAULT_STRENGTH)
        try:
            strength = float(number)
        except ValueError:
            strength = math.nan
        if not name or not abs(strength) <= STRENGTH_LIMIT:
            raise InvalidParameter(
                "loras",
                f"loras: {line!r} is not 'file: strength' with a strength from -{STRENGTH_LIMIT:g} to "
                f"{STRENGTH_LIMIT:g}, such as 'watercolour.safetensors: 0.8'",
            )
        found.append((name, strength))
    return found
