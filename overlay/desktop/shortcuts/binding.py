"""What all means of binding have in common."""

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
"""Parameter and platform data of an action, with their types: gdbus knows the types only of running programs."""
TOGGLE_FALLBACK += ["--method", ACTIVATE_ACTION, "toggle", *NO_PARAMETER]
HELD_HERE = "overlay"
"""The means on a desktop without settings to write: the running overlay holds the key itself."""


class ShortcutError(Exception):
    """The desktop refused. The message quotes it."""


@dataclass(frozen=True)
class Binding:
    """A bound shortcut, and the settings that it replaced, so that they can be restored."""

    means: str
    keys: str
    description: str
    """Where the user can see and change the binding."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """The replaced settings: names and former values."""


class Means(Protocol):
    """One way to bind a key."""

    name: str

    def available(self, environment: Mapping[str, str]) -> bool:
        """Whether this desktop has this means."""
        ...

    def bind(self, command: Sequence[str], keys: str) -> Binding:
        """Make ``keys`` run ``command``. Raises ShortcutError."""
        ...

    def unbind(self, binding: Binding) -> None:
        """Undo `bind` and restore what it replaced. Raises ShortcutError."""
        ...


def run(*command: str) -> str:
    """Run a command of the desktop and return its output. Raises ShortcutError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ShortcutError(f"could not run {command[0]}: {error}") from error
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
    """The command of the shortcut. ``gapplication`` starts no Python, so the window appears at once."""
    if has("gapplication"):
        return ["gapplication", "action", APPLICATION_ID, "toggle"]
    return TOGGLE_FALLBACK
