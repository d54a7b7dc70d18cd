"""What `imagegen generate` shows of a job: one bar on a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import os
import pty
import re
import termios
from collections.abc import Callable

import pytest

from bridge.commands import progress_bar
from bridge.commands.progress_bar import ProgressBar
from bridge.contract import JobEvent

JOB = "8b6a2f0e-8c2e-4a57-9c4e-5c8f4e2a1d11"
BARE_BYTES = re.compile(r"\d{6}|\de\+\d")
"""A size that nobody can read: 24182912, or 2.41829e+07."""


def event(kind: str, phase: str | None = None, value: float = 0, maximum: float = 0, **more: float) -> JobEvent:
    counts = {"phase": phase, "value": value, "maximum": maximum} if phase else {}
    return JobEvent.model_validate({"type": kind, "job_id": JOB, **counts, **more})


def transfer(phase: str, done: int, total: int, **more: float) -> JobEvent:
    return event("progress", phase, done, total, done_bytes=done, total_bytes=total, **more)


STORY = [
    (0, event("queued", position=2, wait_seconds=130)),
    (12, event("queued", position=1, wait_seconds=60)),
    (13, event("started")),
    (13, transfer("download", 0, 4_200_000_000)),
    (14, transfer("download", 100_000_000, 4_200_000_000, bytes_per_second=1e8, seconds_left=41)),
    (24, transfer("download", 1_050_000_000, 4_200_000_000, bytes_per_second=1e8, seconds_left=32)),
    (30, transfer("download", 4_200_000_000, 4_200_000_000, bytes_per_second=1e8, seconds_left=0)),
    (31, transfer("load", 24_182_912, 24_182_912)),
    (31, event("progress", "sample", 1, 4)),
    (32, event("progress", "sample", 2, 4, seconds_left=2)),
    (33, event("progress", "sample", 4, 4, seconds_left=0)),
    (33, event("progress", "sample", 4, 4, seconds_left=0)),
    (34, event("progress", "Decode", 1, 1)),
]
"""A job with the seconds at which its events come."""
LINES = """\
waiting: 2 ahead, starts in about 2 min
waiting: 1 ahead, starts in about 60 s
starting
downloading: 0.0 MB of 4.2 GB
downloading: 1.1 GB of 4.2 GB, 100 MB/s, 32 s left
downloading: 4.2 GB of 4.2 GB, 100 MB/s
loading: 24 MB of 24 MB
generating: 1/4
generating: 4/4
Decode: 1/1
"""


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock that spaces the lines."""
    seconds = 0.0

    def put(value: float) -> None:
        nonlocal seconds
        seconds = value

    monkeypatch.setattr(progress_bar, "monotonic", lambda: seconds)
    return put


def opened(kind: str) -> tuple[int, int]:
    """Where to read what is written, and where to write it."""
    if kind == "pipe":
        return os.pipe()
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 100))
    return reader, writer


def read_until(reader: int, last: str) -> str:
    """What was written, to its last words: a terminal hands it over in pieces."""
    written = b""
    while last.encode() not in written:
        written += os.read(reader, 1_000_000)
    return written.decode()


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(
    kind: str, now: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = opened(kind)
    with os.fdopen(writer, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        with ProgressBar(hidden=False) as bar:
            for at, told in STORY:
                now(at)
                bar.show(told)
            bar.say("job 7")
        stderr.flush()
        written = read_until(reader, "job 7\n" if kind == "pipe" else "job 7")
    os.close(reader)
    assert not BARE_BYTES.search(written)
    if kind == "pipe":
        assert written == LINES + "job 7\n"
    else:
        assert "\rgenerating: ##" in written.replace("█", "#")
        assert "4.2 GB of 4.2 GB, 100 MB/s" in written
        assert "job 7" in written


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_a_hidden_bar_says_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = opened(kind)
    with os.fdopen(writer, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        with ProgressBar(hidden=True) as bar:
            bar.show(event("started"))
            bar.say("job 7")
        stderr.write("end\n")
        stderr.flush()
        assert os.read(reader, 1000).split() == [b"end"]
    os.close(reader)
