"""A desktop session of the tests' own: an X server, a session bus, and a person who sees it through AT-SPI."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

SCREEN = "1280x900x24"
WAIT_S = 30.0
Found = TypeVar("Found")


@contextlib.contextmanager
def x_server() -> Iterator[str]:
    """An X server on a free display; yields its name."""
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", SCREEN, "-nolisten", "tcp"]
    process = subprocess.Popen(command, pass_fds=[writer], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(writer)
    try:
        with os.fdopen(reader) as numbers:
            yield f":{int(numbers.readline())}"
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def session_bus(environment: dict[str, str]) -> Iterator[str]:
    """A session bus of its own, which starts AT-SPI's when it is asked for; yields its address."""
    command = ["dbus-daemon", "--session", "--nofork", "--print-address=1"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10)


def eventually(look: Callable[[], Found | None], what: str, timeout_s: float = WAIT_S) -> Found:
    """What ``look`` returns as soon as it returns something; AssertionError when the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.05)


class Person:
    """Sees and does what a person with a screen reader can: names, roles, texts, actions."""

    def __init__(self, application: str) -> None:
        from gi.repository import Atspi, GLib

        self._atspi = Atspi
        self._gone = GLib.Error
        self._application = application

    def _root(self) -> Any:
        desktop: Any = self._atspi.get_desktop(0)
        for index in range(desktop.get_child_count()):
            child: Any = desktop.get_child_at_index(index)
            if child is not None and child.get_name() == self._application:
                return child
        return None

    def all(self, role: str | None = None) -> list[Any]:
        """Everything that is on the screen now, in reading order."""
        found: list[Any] = []
        root = self._root()
        windows = [root.get_child_at_index(index) for index in range(root.get_child_count())] if root else []
        for window in windows:
            self._collect(window, role, found)
        return found

    def _collect(self, node: Any, role: str | None, found: list[Any]) -> None:
        with contextlib.suppress(Exception):  # a widget that goes away while it is looked at is not there
            if not self.shows(node):
                return
            if role is None or node.get_role_name() == role:
                found.append(node)
            for index in range(node.get_child_count()):
                child = node.get_child_at_index(index)
                if child is not None:
                    self._collect(child, role, found)

    def see(self, name: str, role: str | None = None) -> Any:
        """The visible thing called ``name`` (or whose name begins so), or None."""
        for node in self.all(role):
            with contextlib.suppress(self._gone):  # it was there a moment ago
                if (node.get_name() or "").startswith(name):
                    return node
        return None

    def find(self, name: str, role: str | None = None, timeout_s: float = WAIT_S) -> Any:
        """Wait for ``see``; what there is instead is part of the error."""
        try:
            return eventually(lambda: self.see(name, role), f"{role or 'something'} {name!r} on the screen", timeout_s)
        except AssertionError as error:
            there = [f"{node.get_role_name()} {node.get_name()!r}" for node in self.all() if node.get_name()]
            raise AssertionError(f"{error}; there is {', '.join(there)}") from None

    def shows(self, node: Any) -> bool:
        """Whether it is on the screen. GTK says "showing" of windows only, so of the rest its size is asked too."""
        state = node.get_state_set()
        if node.get_role_name() == "frame":
            return bool(state.contains(self._atspi.StateType.SHOWING))
        extents = node.get_extents(self._atspi.CoordType.WINDOW)
        return bool(state.contains(self._atspi.StateType.VISIBLE)) and extents.width > 0 and extents.height > 0

    def enabled(self, node: Any) -> bool:
        """Whether it can be used."""
        return bool(node.get_state_set().contains(self._atspi.StateType.SENSITIVE))

    def press(self, name: str, role: str = "push button", timeout_s: float = WAIT_S) -> None:
        """Press a button."""
        button = self.find(name, role, timeout_s)
        eventually(lambda: self.enabled(button), f"{name!r} can be pressed", timeout_s)
        assert button.get_action_iface().do_action(0)

    def write(self, name: str, text: str) -> None:
        """Replace the text of an entry."""
        entry = self.find(name, "text")
        assert entry.get_editable_text_iface().set_text_contents(text)

    def text(self, node: Any) -> str:
        """What an entry or a label holds."""
        return self._atspi.Text.get_text(node, 0, -1)


def screenshot(display: str, path: Path) -> None:
    """The screen as a PNG (ImageMagick's import)."""
    subprocess.run(["import", "-display", display, "-window", "root", str(path)], check=True)
