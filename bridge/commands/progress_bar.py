"""One bar on the terminal that follows a job: how long it waits, what it loads, which step it is at."""

from __future__ import annotations

import sys

from tqdm import tqdm

from bridge.contract import JobEvent, duration_text, size_text

PHASES = {"download": "downloading", "load": "loading", "sample": "drawing"}
FORMAT = "{desc}: {bar:24}{postfix} [{elapsed}]"


class ProgressBar:
    """Use as `with ProgressBar(hidden=…) as bar`, and give every event of the job to `show`."""

    def __init__(self, *, hidden: bool) -> None:
        self._bar: tqdm | None = None
        self._hidden = hidden

    def __enter__(self) -> ProgressBar:
        if not self._hidden:
            self._bar = tqdm(desc="waiting", total=1, bar_format=FORMAT)
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.leave = failure is None  # Under an error message half a bar says nothing.
            self._bar.close()
            self._bar = None

    def show(self, event: JobEvent) -> None:
        """Take an event of the job."""
        bar = self._bar
        if bar is None:
            return
        match event.type:
            case "queued" | "state" if event.position is not None:
                self._draw(bar, "waiting", 0, 1, _place(event))
            case "started":
                self._draw(bar, "starting", 0, 1, "")
            case "progress":
                name = PHASES.get(event.phase or "", event.phase or "running")
                self._draw(bar, name, event.value or 0, event.maximum or 0, _progress(event))

    def say(self, text: str) -> None:
        """A line above the bar; nothing where the bar is hidden."""
        if self._bar is not None:
            tqdm.write(text, file=sys.stderr)

    @staticmethod
    def _draw(bar: tqdm, name: str, value: float, maximum: float, text: str) -> None:
        bar.total = maximum or None
        bar.n = min(value, maximum) if maximum else value
        bar.set_description_str(name, refresh=False)
        bar.set_postfix_str(text, refresh=False)
        bar.refresh()


def _place(event: JobEvent) -> str:
    ahead = f"{event.position} ahead" if event.position else "next"
    return ahead if event.wait_seconds is None else f"{ahead}, starts in about {duration_text(event.wait_seconds)}"


def _progress(event: JobEvent) -> str:
    if event.done_bytes is not None:
        total = f" of {size_text(event.total_bytes)}" if event.total_bytes else ""
        parts = [size_text(event.done_bytes) + total]
        if event.bytes_per_second:
            parts.append(f"{size_text(event.bytes_per_second)}/s")
    else:
        parts = [f"{event.value or 0:g}/{event.maximum:g}" if event.maximum else f"{event.value or 0:g}"]
    if event.seconds_left:
        parts.append(f"{duration_text(event.seconds_left)} left")
    return ", ".join(parts)
