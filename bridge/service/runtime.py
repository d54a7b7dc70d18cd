"""The service that runs on a state directory: the runtime file that it writes, and the lock that proves it runs."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from bridge.service.errors import ServiceError
from bridge.settings import Settings

LOCK_PATIENCE_S = 1.0
"""`status` holds the lock for a moment to see whether it is free; a starting service waits for that."""


@dataclass(frozen=True)
class Runtime:
    """The content of the runtime file. `pids` is by name: supervisor, nats, comfyui, worker, gateway."""

    url: str
    comfyui_url: str
    nats_url: str
    pids: dict[str, int] = field(default_factory=dict)
    started_at: float = 0.0

    def write(self, settings: Settings) -> None:
        """Replace the file in one step; only its owner may read it. Raises OSError, and then leaves it as it was."""
        directory = settings.runtime_file.parent
        handle, name = tempfile.mkstemp(prefix=".runtime-", dir=directory)  # mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(asdict(self), file, indent=2)
                file.write("\n")
            os.replace(name, settings.runtime_file)
        except OSError:
            os.unlink(name)
            raise


def running_service(settings: Settings) -> Runtime | None:
    """What runs on this state directory; None when nothing does, even if a killed service left its file behind."""
    if not is_locked(settings):
        return None
    try:
        record = json.loads(settings.runtime_file.read_text(encoding="utf-8"))
        return Runtime(**record)
    except (OSError, ValueError, TypeError):
        return None  # it starts or stops at this moment


def is_locked(settings: Settings) -> bool:
    """True while a service lives on this state directory."""
    try:
        with settings.lock_file.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Hold the lock of the state directory; raises ServiceError with the other instance's URL when it is taken.

    The kernel drops the lock with the process, however it dies. Python's files are not inherited by children.
    """
    with settings.lock_file.open("wb") as file:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServiceError(_already_running(settings)) from None
                time.sleep(0.05)
        yield


@contextmanager
def single_instance(settings: Settings) -> Iterator[None]:
    """Be the service that runs on the state directory. Raises ServiceError if there is one already."""
    with locked(settings):
        settings.runtime_file.unlink(missing_ok=True)  # left by a service that was killed
        try:
            yield
        finally:
            settings.runtime_file.unlink(missing_ok=True)


def _already_running(settings: Settings) -> str:
    runtime = running_service(settings)
    where = f" at {runtime.url}" if runtime is not None else ""
    return f"the service already runs{where} on {settings.state_dir}; stop it, or use another --state-dir"
