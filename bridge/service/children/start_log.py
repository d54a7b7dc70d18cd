"""What ComfyUI's log says of a start that failed: its last error, and a remedy where there is a known one.

Only errors count. At start-up ComfyUI and the packs beside ours also log what they can do without, in the words of an
error (`[INFO] No OpenGL_accelerate module loaded: No module named …`), and a pack that fails is a warning with a
traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import dropwhile

ARGUMENTS_VARIABLE = "IMAGEGEN_COMFYUI_ARGS"
REMEDIES = {
    "no module named": "a package is missing in its Python: install its requirements.txt and this project's",
    "already in use": "another program took its port at the same moment: start again",
    "driver on your system is too old": f"update the NVIDIA driver, or set {ARGUMENTS_VARIABLE}=--cpu",
    "found no nvidia driver": f"install the NVIDIA driver, or set {ARGUMENTS_VARIABLE}=--cpu",
    "unrecognized arguments": f"check {ARGUMENTS_VARIABLE}",
    "no space left on device": "free some disk space",
}
"""By a part of the error, in lower case: asyncio writes what the system says in lower case, Python does not."""

_TAGGED = re.compile(r"\[(?P<level>DEBUG|DETAIL|INFO|WARNING|ERROR|CRITICAL)\] ?(?P<text>.*)")
"""A record of a newer ComfyUI; older ones do not write the level."""
_UNTAGGED_ERROR = re.compile(r"(\S+: error: |error: |fatal: |ERROR\b|CRITICAL\b|FATAL\b)")
"""argparse, git, pip, and programs that write their level."""
_TRACEBACK = "Traceback (most recent call last):"
_PACK_FAILED = re.compile(r"Cannot import .* module for custom nodes: ")
_REFUSED = re.compile(
    r"(Cannot import \S*neurolux.* module for custom nodes|comfy_entrypoint in \S*neurolux[^:]*): *(?P<cause>.*)"
)


@dataclass
class _Record:
    """What was logged at once: a tagged record, or what a traceback or a bare error line begins."""

    is_error: bool
    lines: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """The line that says what happened; of a traceback, the one after its frames."""
        lines = self.lines
        if _TRACEBACK in lines:
            start = len(lines) - lines[::-1].index(_TRACEBACK)
            lines = list(dropwhile(lambda line: not line or line.startswith(" "), lines[start:]))
        first, *more = [line.strip() for line in lines] or [""]
        return f"{first} {more[0]}" if first.endswith(":") and more else first


def last_error(log: str) -> str | None:
    """The message of the last error in the log; None if there is no error in it."""
    messages = [record.message for record in _records(log) if record.is_error]
    return next((message for message in reversed(messages) if message), None)


def remedy_for(error: str) -> str | None:
    """What a user can do about an error, if it is a known one."""
    lowered = error.lower()
    return next((remedy for sign, remedy in REMEDIES.items() if sign in lowered), None)


def why_the_pack_failed(log: str) -> str | None:
    """Why ComfyUI runs without the NeuroLux nodes, in its own words; None if it does not say.

    It continues without a pack that fails, and logs "Cannot import <path> module for custom nodes: <cause>" or "Error
    while calling comfy_entrypoint in <path>: <cause>".
    """
    matches = [match for line in log.splitlines() if (match := _REFUSED.search(line))]
    return matches[-1]["cause"].strip() if matches else None


def _records(log: str) -> Iterator[_Record]:
    record = _Record(False)
    for line in log.splitlines():
        if tagged := _TAGGED.match(line):
            yield record
            record = _Record(tagged["level"] in ("ERROR", "CRITICAL"), [tagged["text"]])
        elif _PACK_FAILED.match(line):  # The traceback before it was that pack's.
            record = _Record(False, [line])
        elif line == _TRACEBACK or _UNTAGGED_ERROR.match(line):
            yield record
            record = _Record(True, [line])
        else:
            record.lines.append(line)
    yield record
