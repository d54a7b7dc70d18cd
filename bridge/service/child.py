"""A child process that cannot outlive the service: own process group, own log file, killed with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
LOG_TAIL_BYTES = 64 * 1024
LOG_KEPT_BYTES = 8 * 1024 * 1024
"""A larger log is moved to `<name>.log.1` when the child starts again."""


class ChildProcess:
    """A program and its current process. `start` may be called again after the process has ended."""

    def __init__(
        self, name: str, argv: Sequence[str], *, log_file: Path, env: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log_file = log_file
        self._env = dict(env)
        self._cwd = cwd
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process id while the process runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start the program; its output is appended to the log file."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_KEPT_BYTES:
            self.log_file.replace(self.log_file.with_name(self.log_file.name + ".1"))
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env=self._env,
                start_new_session=True,  # Ctrl-C reaches only the service, which stops its children in order
                preexec_fn=_die_with_parent(),
            )

    async def wait(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return await self._process.wait()

    async def stop(self, grace_s: float = 5.0, first: signal.Signals = signal.SIGTERM) -> None:
        """Ask the process to end, and kill its whole group if it has not ended after `grace_s`."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            self._signal(first)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await process.wait()
        self._signal(signal.SIGKILL)  # also processes that it left behind
        await process.wait()

    def kill(self) -> None:
        """Kill the process and its group at once."""
        if self._process is not None and self._process.returncode is None:
            self._signal(signal.SIGKILL)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines that the process wrote since it was last started."""
        try:
            with self.log_file.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - LOG_TAIL_BYTES))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone
            os.killpg(self._process.pid, number)


def _die_with_parent() -> Callable[[], None] | None:
    """A function for the forked child: the kernel kills it when the service dies, even by SIGKILL. Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return arm
