"""What every means of binding has in common."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

KEYS = "<Alt>space"
NAME = "NeuroLux"
APPLICATION_ID = "org.neurolux.Overlay"
TIMEOUT_S = 15
OBJECT_PATH = "/" + APPLICATION_ID.replace(".", "/")
ACTIVATE_ACTION = "org.freedesktop.Application.ActivateAction"
TOGGLE_FALLBACK = ["gdbus", "call", "--session", "--dest", APPLICATION_ID, "--object-path", OBJECT_PATH]
NO_PARAMETER = ("@av []", "@a{sv} {}")
"""An action's parameter and platform data. With their types: gdbus knows those of programs that run already only."""
TOGGLE_FALLBACK += ["--method", ACTIVATE_ACTION, "toggle", *NO_PARAMETER]
HELD_HERE = "overlay"
"""The means of a desktop without settings to write: the running overlay holds the key itself."""


class ShortcutError(Exception):
    """The desktop refused; the message says what it said and what to do by hand."""


@dataclass(frozen=True)
class Binding:
    """A bound shortcut: what was used, and what there was before, so that it can be put back."""

    means: str
    keys: str
    description: str
    """For a person: where the binding can be seen and changed."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """Settings that had to give way, by name, with their former values."""


class Means(Protocol):
    """One way to bind a key."""

    name: str

    def available(self, environment: Mapping[str, str]) -> bool:
        """Whether this desktop has it."""
        ...

    def bind(self, command: Sequence[str], keys: str) -> Binding:
        """Make ``keys`` run ``command``. Raises ShortcutError."""
        ...

    def unbind(self, binding: Binding) -> None:
        """Undo `bind`, and put back what it replaced. Raises ShortcutError."""
        ...


def run(*command: str) -> str:
    """Run one of the desktop's own commands and return what it printed. Raises ShortcutError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ShortcutError(f"{command[0]} does not work here: {error}") from error
    if done.returncode != 0:
        raise ShortcutError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def has(program: str) -> bool:
    """Whether ``program`` can be run."""
    return shutil.which(program) is not None


def desktops(environment: Mapping[str, str]) -> set[str]:
    """The names in XDG_CURRENT_DESKTOP, in lower case: ``{"ubuntu", "gnome"}``."""
    return {name.lower() for name in environment.get("XDG_CURRENT_DESKTOP", "").split(":") if name}


def toggle_command() -> list[str]:
    """What the shortcut runs. ``gapplication`` starts no Python, so the window is there at once."""
    if has("gapplication"):
        return ["gapplication", "action", APPLICATION_ID, "toggle"]
    return TOGGLE_FALLBACK
