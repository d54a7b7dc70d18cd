"""The log of a child: rotated while it runs, whole, private, and no trouble on a full disk."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from pathlib import Path

import pytest

from bridge.service.children.child import ChildProcess
from bridge.service.children.log_file import LogFile
from tests.faults.disk import small_disk


@pytest.mark.parametrize("piece", [1, 7, 100, 5000])
def test_no_line_is_lost_or_cut_by_a_rotation(tmp_path: Path, piece: int) -> None:
    text = b"".join(b"line %d\n" % number for number in range(3000))
    log = LogFile(tmp_path / "logs" / "x.log", limit=2000)
    for start in range(0, len(text), piece):
        log.write(text[start : start + piece])
    kept = [path.read_bytes() for path in (tmp_path / "logs" / "x.log.1", tmp_path / "logs" / "x.log")]
    assert text.endswith(b"".join(kept))
    assert kept[0].startswith(b"line ")
    assert kept[0].endswith(b"\n")
    assert all(len(part) < 2000 + piece + 20 for part in kept)
    assert log.tail(2) == "line 2998\nline 2999"
    log.close()


def test_a_line_without_an_end_does_not_grow_for_ever(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log", limit=1000)
    for _ in range(100):
        log.write(b"." * 100)
    assert (tmp_path / "x.log").stat().st_size <= 2100
    assert (tmp_path / "x.log.1").stat().st_size <= 2100
    log.close()


async def test_a_running_child_is_logged_into_a_file_of_its_owner(tmp_path: Path) -> None:
    program = "import os\nfor n in range(20000): print('line', n, flush=False)"
    child = ChildProcess("x", [sys.executable, "-c", program], log_file=tmp_path / "x.log", env=os.environ)
    await child.start()
    assert await child.wait() == 0
    assert (tmp_path / "x.log").read_text() == "".join(f"line {n}\n" for n in range(20000))
    assert stat.S_IMODE((tmp_path / "x.log").stat().st_mode) == 0o600
    await child.stop()


async def test_a_full_disk_costs_lines_and_says_how_many_bytes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4) as disk:
        program = "import time\nfor n in range(40): print('x' * 5000, n, flush=True); time.sleep(0.05)"
        child = ChildProcess("x", [sys.executable, "-c", program], log_file=disk.folder / "x.log", env=os.environ)
        await child.start()
        await asyncio.sleep(0.5)
        disk.fill()
        await asyncio.sleep(0.8)
        disk.release()
        assert await child.wait() == 0  # A write to its own output never failed.
        text = (disk.folder / "x.log").read_text()
        assert "bytes of this log could not be written]\n" in text
        assert text.endswith(" 39\n")
        assert child.log_tail(1).endswith(" 39")
        await child.stop()
