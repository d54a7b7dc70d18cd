"""Text for a terminal: names, descriptions and errors come from files, models and other programs.

A control sequence in them could hide or forge lines, rename the window, or paste into the clipboard. So every command
prints through here, and what a terminal would interpret is shown as `\\u001b`, which in JSON stands for the same text.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import TextIO

_HARMLESS = "\n\t"
_JOINERS = "\u200c\u200d"
"""Parts of words and of emoji."""
_INTERPRETED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Control characters, marks that change the direction of the text, halves of characters, and odd line ends."""


_CONTROL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
"""ECMA-48: CSI (colours, cursor), OSC (titles, links), and the escapes of two characters."""


def without_colours(text: str) -> str:
    """What a program wrote for a terminal, without its control sequences: for messages, which quote it."""
    return _CONTROL_SEQUENCE.sub("", text)


def safe_text(text: str) -> str:
    """The text with nothing in it that a terminal interprets, but line ends and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def safe_line(text: str) -> str:
    """The same in one line: the cell of a table, the label of a bar."""
    return safe_text(text).replace("\n", "\\n").replace("\t", " ")


def show(text: object = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print to standard output, or to `file`. A character that the terminal's encoding lacks is shown by its number."""
    stream = file or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    safe = safe_text(str(text)).encode(encoding, "backslashreplace").decode(encoding)
    print(safe, end=end, file=stream, flush=stream is sys.stderr)


def _shown(character: str) -> str:
    if character in _HARMLESS or character in _JOINERS or unicodedata.category(character) not in _INTERPRETED:
        return character
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)  # as JSON writes it
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
