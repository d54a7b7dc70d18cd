"""A child process that cannot outlive the service: own process group, own log file, killed with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bridge.alive import ALIVE_VARIABLE
from bridge.service.children.log_file import LogFile

_PR_SET_PDEATHSIG = 1
PIPE_BYTES = 1024 * 1024
"""What a child may write while this process is busy, before the child has to wait."""
READ_BYTES = 64 * 1024


class ChildProcess:
    """A program and its current process. `start` may be called again after the process has ended.

    What the child writes comes through a pipe, so that its log can be rotated while it runs. `beats`: the child is one
    of the bridge's own commands, which says at intervals that it is alive; `beat_at` is when it last did (monotonic).
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log_file: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        beats: bool = False,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log_file = log_file
        self.beat_at = 0.0
        self._env = dict(env)
        self._cwd = cwd
        self._beats = beats
        self._process: asyncio.subprocess.Process | None = None
        self._log = LogFile(log_file)
        self._pipes: dict[int, Callable[[bytes], None]] = {}

    @property
    def pid(self) -> int | None:
        """The process id while the process runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Start the program; its output is appended to the log file. Raises OSError if the system cannot start it."""
        self._close_pipes()
        self._log.begin()
        self.beat_at = time.monotonic()
        output = self._pipe(self._log.write)
        beats = self._pipe(self._on_beat) if self._beats else None
        env = {**self._env, **({ALIVE_VARIABLE: str(beats)} if beats is not None else {})}
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._cwd,
                env=env,
                pass_fds=() if beats is None else (beats,),
                start_new_session=True,  # Ctrl-C reaches only the service, which stops its children in order
                preexec_fn=_die_with_parent(),
            )
        finally:
            for end in (output, beats):
                if end is not None:
                    os.close(end)

    async def wait(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        code = await self._process.wait()
        self._signal(signal.SIGKILL)  # what it left behind may hold its port
        self._drain()
        return code

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
        self._drain()
        self._close_pipes()
        self._log.close()

    def kill(self) -> None:
        """Kill the process and its group at once."""
        if self._process is not None and self._process.returncode is None:
            self._signal(signal.SIGKILL)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines that the process wrote since it was last started."""
        self._drain()
        return self._log.tail(lines)

    # -- pipes -----------------------------------------------------------------------------------------------------

    def _pipe(self, take: Callable[[bytes], None]) -> int:
        """The writing end of a new pipe, whose content goes to `take`."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # The user's pipes are at their limit.
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._pipes[reading] = take
        asyncio.get_running_loop().add_reader(reading, self._read, reading)
        return writing

    def _read(self, pipe: int) -> bool:
        """Take what is in the pipe. False when it is empty, or closed at the other end."""
        try:
            data = os.read(pipe, READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._pipes[pipe](data)
        else:
            self._close_pipe(pipe)
        return bool(data)

    def _drain(self) -> None:
        for pipe in list(self._pipes):
            while pipe in self._pipes and self._read(pipe):
                pass

    def _close_pipe(self, pipe: int) -> None:
        asyncio.get_running_loop().remove_reader(pipe)
        del self._pipes[pipe]
        os.close(pipe)

    def _close_pipes(self) -> None:
        for pipe in list(self._pipes):
            self._close_pipe(pipe)

    def _on_beat(self, _: bytes) -> None:
        self.beat_at = time.monotonic()

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
