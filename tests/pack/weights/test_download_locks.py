"""Two processes that want the same file: one waits for the other, and the lock stays."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from tests.pack.conftest import REPO  # noqa: F401 - puts the pack on the path


def test_a_held_lock_is_waited_for_and_never_deleted(tmp_path: Path) -> None:
    from neurolux.weights.download.resumable import alone

    path, waited = tmp_path / "x.lock", []
    other = FileLock(path)
    other.acquire()

    def waiting() -> None:
        waited.append(path.stat().st_ino)
        other.release()

    with alone(path, waiting):
        assert len(waited) == 1
    assert path.stat().st_ino == waited[0]
