"""A desktop session of the tests' own: an X server, a session bus, and a person who sees it through AT-SPI."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from PIL import ImageGrab
from Xlib import XK, X
from Xlib.display import Display
from Xlib.error import XError
from Xlib.ext import xtest

SCREEN = "1280x900x24"
NO_KEYS = """<?xml version="1.0"?>
<openbox_config xmlns="http://openbox.org/3.4/rc"><keyboard/><mouse/></openbox_config>"""
"""Openbox's own configuration binds Alt+Space."""
WAIT_S = 60.0
HAND_STEPS = 40
HAND_PAUSE_S = 0.02
"""How fast the hand with the mouse is: a drag of 40 moves takes most of a second."""
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
def window_manager(environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Openbox, which follows EWMH, with no keys of its own."""
    configuration = folder / "openbox.xml"
    configuration.write_text(NO_KEYS)
    command = ["openbox", "--sm-disable", "--config-file", str(configuration)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with contextlib.closing(Display(environment["DISPLAY"])) as display:
            root, ready = display.screen().root, display.intern_atom("_NET_SUPPORTING_WM_CHECK")
            eventually(lambda: root.get_full_property(ready, X.AnyPropertyType), "a window manager")
        yield
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
        self._context = GLib.MainContext.default()
        self._gone = GLib.Error
        self._application = application

    def applications(self) -> Iterator[tuple[str, Any]]:
        """Those that the registry lists, by name. One that just ended is listed a little longer."""
        desktop: Any = self._atspi.get_desktop(0)
        for index in range(desktop.get_child_count()):
            with contextlib.suppress(self._gone):
                child: Any = desktop.get_child_at_index(index)
                if child is not None:
                    yield child.get_name() or "", child

    def is_gone(self) -> bool:
        """Whether the application has ended for libatspi too, which hears it by an event and looks at those when it
        likes: after the next one has begun, it would take that one for what ended."""
        while self._context.pending():
            self._context.iteration(False)
        return all(name != self._application for name, _ in self.applications())

    def _windows(self) -> Iterator[Any]:
        """Of every application of that name: an overlay that just ended may stand before the one that runs."""
        for name, root in self.applications():
            if name != self._application:
                continue
            with contextlib.suppress(self._gone):
                for index in range(root.get_child_count()):
                    yield root.get_child_at_index(index)

    def all(self, role: str | None = None) -> list[Any]:
        """Everything that is on the screen now, in reading order."""
        found: list[Any] = []
        for window in self._windows():
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
            running = [application for application, _ in self.applications()]
            raise AssertionError(f"{error}; there is {', '.join(there)}; applications: {running}") from None

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
        return self._atspi.Text.get_text(node, 0, self._atspi.Text.get_character_count(node))

    def focused(self) -> Any:
        """What has the keyboard, or None."""
        focused = self._atspi.StateType.FOCUSED
        with contextlib.suppress(self._gone):  # one went away while it was looked at
            return next((node for node in self.all() if node.get_state_set().contains(focused)), None)
        return None

    def unnamed(self) -> list[str]:
        """What can have the keyboard and has no name; GTK gives what has none the name of its class."""
        focusable = self._atspi.StateType.FOCUSABLE
        found = []
        for node in self.all():
            # What is inside a combo box never has it: the row does.
            if node.get_state_set().contains(focusable) and not self._is_inside(node, "combo box"):
                name = node.get_name() or ""
                if not name or name.startswith(("Gtk", "Adw", "overlay+")):
                    found.append(f"{node.get_role_name()} {name!r} in {node.get_parent().get_name()!r}")
        return found

    @staticmethod
    def _is_inside(node: Any, role: str) -> bool:
        """Asked of the node as it is now: the lists of a combo box are made anew when its choices change."""
        parent = node.get_parent()
        while parent is not None and parent.get_role_name() != role:
            parent = parent.get_parent()
        return parent is not None

    def middle(self, node: Any) -> tuple[int, int]:
        """Where it is in its window."""
        extents = node.get_extents(self._atspi.CoordType.WINDOW)
        return extents.x + extents.width // 2, extents.y + extents.height // 2

    def below(self, node: Any, role: str | None = None) -> list[Any]:
        """What ``node`` holds, itself left out."""
        found: list[Any] = []
        self._collect(node, role, found)
        return [inner for inner in found if inner != node]


class Hands:
    """Keys, as the X server hears them from a real keyboard (XTEST), and the windows that it shows."""

    def __init__(self, display: str) -> None:
        self._display = Display(display)

    def press(self, keys: str) -> None:
        """A chord such as ``Control+Shift+s``; names are X's keysyms."""
        names = {"Control": "Control_L", "Shift": "Shift_L", "Alt": "Alt_L"}
        codes = [
            self._display.keysym_to_keycode(XK.string_to_keysym(names.get(name, name))) for name in keys.split("+")
        ]
        for code in codes:
            xtest.fake_input(self._display, X.KeyPress, code)
        for code in reversed(codes):
            xtest.fake_input(self._display, X.KeyRelease, code)
        self._display.sync()

    def type(self, text: str) -> None:
        """Small letters, blanks and commas."""
        for letter in text:
            self.press({" ": "space", ",": "comma"}.get(letter, letter))

    def drag(self, start: tuple[int, int], end: tuple[int, int], over: Callable[[], bool]) -> None:
        """Drag with the mouse on the screen; let go once ``over`` says that the target has answered."""
        self._point(*start)
        xtest.fake_input(self._display, X.ButtonPress, 1)
        for step in range(HAND_STEPS + 1):  # a program takes it for a drag only after several moves
            self._point(*(near + (far - near) * step // HAND_STEPS for near, far in zip(start, end, strict=True)))
        try:
            eventually(lambda: self._point(end[0] + 1, end[1]) or self._point(*end) or over(), "the target answers")
        finally:
            xtest.fake_input(self._display, X.ButtonRelease, 1)
            self._display.sync()

    def _point(self, x: int, y: int) -> None:
        xtest.fake_input(self._display, X.MotionNotify, x=x, y=y)
        self._display.sync()
        time.sleep(HAND_PAUSE_S)

    def place(self, title: str, x: int, y: int) -> None:
        """Move a window."""
        self.windows()[title].configure(x=x, y=y)
        self._display.sync()

    def origin(self, title: str) -> tuple[int, int]:
        """Where a window's inside begins on the screen."""
        at = self._display.screen().root.translate_coords(self.windows()[title], 0, 0)
        return abs(at.x), abs(at.y)

    def active_window(self) -> str:
        """The title of the window that has the keyboard."""
        window = self._property(self._display.screen().root, "_NET_ACTIVE_WINDOW")
        if window is None or not window[0]:
            return ""
        title = None
        with contextlib.suppress(XError):  # it was closed a moment ago
            title = self._property(self._display.create_resource_object("window", int(window[0])), "_NET_WM_NAME")
        return title.decode() if isinstance(title, bytes) else ""

    def windows(self) -> dict[str, Any]:
        """The windows that the window manager shows, by title, the uppermost last."""
        stacked = self._property(self._display.screen().root, "_NET_CLIENT_LIST_STACKING")
        found = {}
        for number in stacked if stacked is not None else ():
            window = self._display.create_resource_object("window", int(number))
            with contextlib.suppress(XError):  # it was closed a moment ago
                title = self._property(window, "_NET_WM_NAME")
                found[title.decode() if isinstance(title, bytes) else ""] = window
        return found

    def states(self, title: str) -> list[str]:
        """The EWMH states of the window called ``title``."""
        window = self.windows().get(title)
        held = self._property(window, "_NET_WM_STATE") if window is not None else None
        return [self._display.get_atom_name(int(atom)) for atom in held] if held is not None else []

    def _property(self, window: Any, name: str) -> Any:
        held = window.get_full_property(self._display.intern_atom(name), X.AnyPropertyType)
        return None if held is None else held.value


def screenshot(display: str, path: Path) -> None:
    """The screen as a PNG."""
    ImageGrab.grab(xdisplay=display).save(path)
