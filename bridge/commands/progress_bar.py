"""How far a job is, on stderr: one bar on a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import sys
from time import monotonic

from tqdm import tqdm

from bridge.contract import JobEvent, JobProgress, duration_text, size_text
from bridge.terminal import safe_line, safe_text, show

PHASES = {"download": "downloading", "load": "loading", "sample": "generating"}
FORMAT = "{desc}: {bar:24}{postfix} [{elapsed}]"
LINE_INTERVAL_S = 10.0
"""The shortest time between two lines about the same phase; its last line does not wait."""


class ProgressBar:
    """Use as `with ProgressBar(hidden=…) as bar`, and give every event of the job to `show`."""

    def __init__(self, *, hidden: bool) -> None:
        self._shown: _Bar | _Lines | None = None
        self._hidden = hidden

    def __enter__(self) -> ProgressBar:
        if not self._hidden:
            self._shown = _Bar() if sys.stderr.isatty() else _Lines()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if self._shown is not None:
            self._shown.close(failed=failure is not None)
            self._shown = None

    def show(self, event: JobEvent) -> None:
        """Take an event of the job."""
        shown = self._shown
        if shown is None:
            return
        match event.type:
            case "queued" | "state" if event.position is not None:
                shown.draw("waiting", 0, 1, _place(event))
            case "started":
                shown.draw("starting", 0, 1, "")
            case "progress":
                shown.draw(phase_name(event), event.value or 0, event.maximum or 0, _progress(event))

    def say(self, text: str) -> None:
        """A line above the bar; nothing where the bar is hidden."""
        if self._shown is not None:
            tqdm.write(safe_text(text), file=sys.stderr)


class _Bar:
    """A bar that draws over itself."""

    def __init__(self) -> None:
        self._bar = tqdm(desc="waiting", total=1, bar_format=FORMAT)

    def draw(self, name: str, value: float, maximum: float, text: str) -> None:
        bar = self._bar
        bar.total = maximum or None
        bar.n = min(value, maximum) if maximum else value
        bar.set_description_str(safe_line(name), refresh=False)
        bar.set_postfix_str(safe_line(text), refresh=False)
        bar.refresh()

    def close(self, *, failed: bool) -> None:
        self._bar.leave = not failed  # Under an error message half a bar says nothing.
        self._bar.close()


class _Lines:
    """A line when a phase begins, when it is complete, and now and then in between."""

    def __init__(self) -> None:
        self._name = ""
        self._line = ""
        self._told_at = 0.0

    def draw(self, name: str, value: float, maximum: float, text: str) -> None:
        line = safe_line(f"{name}: {text}" if text else name)
        due = name != self._name or 0 < maximum <= value or monotonic() - self._told_at >= LINE_INTERVAL_S
        if not due or line == self._line:
            return
        self._name, self._line, self._told_at = name, line, monotonic()
        show(line, file=sys.stderr)

    def close(self, *, failed: bool) -> None:
        """Nothing is left to write."""


def phase_name(progress: JobEvent | JobProgress) -> str:
    """What a running job does."""
    return PHASES.get(progress.phase or "", progress.phase or "running")


def count_text(progress: JobEvent | JobProgress) -> str:
    """How far a phase is: ``1.1 GB of 4.2 GB``, ``3/8``."""
    if progress.done_bytes is not None:
        total = f" of {size_text(progress.total_bytes)}" if progress.total_bytes else ""
        return size_text(progress.done_bytes) + total
    return f"{progress.value or 0:g}" + (f"/{progress.maximum:g}" if progress.maximum else "")


def _place(event: JobEvent) -> str:
    ahead = f"{event.position} ahead" if event.position else "next"
    return ahead if event.wait_seconds is None else f"{ahead}, starts in about {duration_text(event.wait_seconds)}"


def _progress(event: JobEvent) -> str:
    parts = [count_text(event)]
    if event.bytes_per_second:
        parts.append(f"{size_text(event.bytes_per_second)}/s")
    if event.seconds_left:
        parts.append(f"{duration_text(event.seconds_left)} left")
    return ", ".join(parts)
