"""How soon the overlay's bar is on the screen, after the key press and after the command of a desktop's shortcut.

The peer is the least that GTK 4 can do: an undecorated window with an entry, hidden and presented in the same way, in
the same run and in turns. A window counts as shown when its pixels are on the screen, with the text of its entry.
Under Xvfb with openbox, on a session bus of its own; needs what scripts/install-test-packages.sh installs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from Xlib import X
from Xlib.display import Display
from Xlib.error import XError

from overlay.pygobject import require_gtk
from tests.overlay.desktop import Hands, eventually, session_bus, window_manager, x_server

GOAL_MS = 150
POLL_S = 0.001
ROW = 28
TEXT_COLOURS = 8
"""Antialiased text has more, an empty entry fewer."""
LATEST_S = 10.0
PEER_ID, PEER_TITLE = "org.neurolux.BarePeer", "Bare window"
OVERLAY_ID, OVERLAY_TITLE = "org.neurolux.Overlay", "NeuroLux"


def run_peer() -> None:
    """The peer's process: a bare window, toggled by the key or by its action."""
    require_gtk()
    from gi.repository import Gdk, Gio, GLib, Gtk

    from overlay.desktop.shortcuts.x11_grab import X11Grab

    application = Gtk.Application(application_id=PEER_ID)
    holds: list[object] = []

    def toggle(*_: object) -> bool:
        window = application.get_windows()[0]
        window.set_visible(False) if window.is_visible() else window.present()
        return GLib.SOURCE_REMOVE

    def start(_: object) -> None:
        application.hold()
        entry = Gtk.Entry(
            placeholder_text="A bare window", margin_top=10, margin_bottom=10, margin_start=12, margin_end=12
        )
        window = Gtk.ApplicationWindow(application=application, title=PEER_TITLE, child=entry)
        window.set_decorated(False)
        window.set_default_size(640, -1)
        action = Gio.SimpleAction.new("toggle", None)
        action.connect("activate", toggle)
        application.add_action(action)
        if "--hold-key" in sys.argv:
            display: Any = Gdk.Display.get_default()
            holds.append(X11Grab(display.get_name(), lambda: GLib.idle_add(toggle)))

    application.connect("startup", start)
    application.connect("activate", lambda _: None)
    application.run([])


class Screen:
    """Looks at the pixels of windows."""

    def __init__(self, display: str) -> None:
        self._display = Display(display)
        self._hands = Hands(display)
        self._windows: dict[str, Any] = {}

    def learn(self, title: str) -> None:
        """Remember the window called ``title``, which must be shown now."""
        shown = eventually(lambda: self._hands.windows().get(title), f"the window {title!r}")
        self._windows[title] = self._display.create_resource_object("window", shown.id)

    def visible(self, title: str) -> bool:
        """Whether a row through the window's entry has the colours of its text."""
        window = self._windows[title]
        try:
            size = window.get_geometry()
            row: Any = window.get_image(0, min(ROW, size.height // 2), size.width, 1, X.ZPixmap, 0xFFFFFF).data
        except XError:
            return False  # not mapped
        return len({row[at : at + 3] for at in range(0, len(row), 4)}) > TEXT_COLOURS

    def wait(self, title: str, *, visible: bool) -> None:
        """Wait until the window is visible, or gone."""
        deadline = time.perf_counter() + LATEST_S
        while self.visible(title) != visible:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{title!r} was not {'visible' if visible else 'hidden'} within {LATEST_S:g} s")
            time.sleep(POLL_S)
        if not visible:  # The window manager may still be hiding it; if it came back now, it would be hidden again.
            eventually(lambda: title not in self._hands.windows(), f"{title!r} is hidden")


@contextlib.contextmanager
def process(environment: dict[str, str], *arguments: str) -> Iterator[None]:
    """A program of the session, ended afterwards."""
    running = subprocess.Popen([sys.executable, *arguments], env=environment)
    try:
        yield
    finally:
        running.terminate()
        running.wait(10)


def measure(screen: Screen, title: str, press: Callable[[], object], rounds: int) -> list[float]:
    """Milliseconds from ``press`` to the pixels, ``rounds`` times."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        press()
        screen.wait(title, visible=True)
        times.append((time.perf_counter() - started) * 1000)
        press()
        screen.wait(title, visible=False)
    return times


def report(name: str, ours: list[float], peer: list[float]) -> None:
    """One line of the table."""
    middle, bare = statistics.median(ours), statistics.median(peer)
    late = sorted(ours)[round(0.95 * (len(ours) - 1))]
    print(f"| {name} | {middle:.0f} | {late:.0f} | {bare:.0f} | {middle / bare:.2f} |", flush=True)


def command_of(application: str, environment: dict[str, str]) -> Callable[[], object]:
    """What a desktop's shortcut runs."""
    command = ["gapplication", "action", application, "toggle"]
    return lambda: subprocess.run(command, env=environment, check=True, capture_output=True)


def bench(environment: dict[str, str], rounds: int) -> None:
    """Measure both ways, ours and the peer's in turns."""
    display = environment["DISPLAY"]
    screen, hands = Screen(display), Hands(display)
    print("| from | overlay p50 ms | p95 ms | bare GTK 4 window p50 ms | ratio |")
    print("|---|---|---|---|---|")
    commands = {
        OVERLAY_TITLE: command_of(OVERLAY_ID, environment),
        PEER_TITLE: command_of(PEER_ID, environment),
    }
    times: dict[str, list[float]] = {title: [] for title in commands}
    ours, peer = ("-m", "overlay", "--hidden"), ("-m", "benchmarks.overlay", "--peer")
    with process(environment, *ours), process(environment, *peer):
        for title, command in commands.items():
            eventually(lambda command=command: not _fails(command), f"{title} runs")
            screen.learn(title)
            screen.wait(title, visible=True)
            command()
            screen.wait(title, visible=False)
        for _ in range(rounds):
            for title, command in commands.items():
                times[title] += measure(screen, title, command, 1)
    report("`gapplication action`", times[OVERLAY_TITLE], times[PEER_TITLE])

    # One program at a time can hold the key.
    record = Path(environment["XDG_CONFIG_HOME"], "neurolux-imagegen", "shortcut.json")
    record.write_text('{"means": "overlay", "keys": "<Alt>space", "description": ""}')
    held: dict[str, list[float]] = {}
    for title, program in ((OVERLAY_TITLE, ours), (PEER_TITLE, (*peer, "--hold-key"))):
        with process(environment, *program):
            eventually(lambda title=title: not _fails(commands[title]), f"{title} runs")
            screen.learn(title)
            screen.wait(title, visible=True)
            commands[title]()
            screen.wait(title, visible=False)
            measure(screen, title, lambda: hands.press("Alt+space"), 3)
            held[title] = measure(screen, title, lambda: hands.press("Alt+space"), rounds)
    report("Alt+Space", held[OVERLAY_TITLE], held[PEER_TITLE])
    met = "met" if statistics.median(held[OVERLAY_TITLE]) < GOAL_MS else "missed"
    print(f"goal: under {GOAL_MS} ms from key to pixels: {met}; load average {os.getloadavg()[0]:.1f}")


def _fails(command: Callable[[], object]) -> bool:
    try:
        command()
    except subprocess.CalledProcessError:
        return True
    return False


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--hold-key", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        run_peer()
        return
    with tempfile.TemporaryDirectory() as folder, x_server() as display:
        home = Path(folder)
        (home / "config" / "neurolux-imagegen").mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "IMAGEGEN_"))}
        environment = {
            **kept,
            "DISPLAY": display,
            "HOME": folder,
            "XDG_RUNTIME_DIR": folder,
            "XDG_CONFIG_HOME": str(home / "config"),
            "GDK_BACKEND": "x11",
            "GSK_RENDERER": "cairo",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        with session_bus(environment) as bus, window_manager(environment, home):
            bench({**environment, "DBUS_SESSION_BUS_ADDRESS": bus}, arguments.rounds)


if __name__ == "__main__":
    main()
