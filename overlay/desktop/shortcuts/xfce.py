"""The keyboard shortcuts of Xfce, in xfconf."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from overlay.desktop.shortcuts.binding import Binding, ShortcutError, desktops, has, run

CHANNEL = "xfce4-keyboard-shortcuts"


class XfceBinding:
    """An entry among the application shortcuts."""

    name = "xfce"

    def available(self, environment: Mapping[str, str]) -> bool:
        """Whether Xfce is running."""
        return "xfce" in desktops(environment) and has("xfconf-query")

    def bind(self, command: Sequence[str], keys: str) -> Binding:
        """Add the entry. The window manager, whose menu has Alt+Space, releases it."""
        replaced = {}
        window_manager = f"/xfwm4/custom/{keys}"
        held = _get(window_manager)
        if held:
            run("xfconf-query", "-c", CHANNEL, "-p", window_manager, "-r")
            replaced[window_manager] = held
        run("xfconf-query", "-c", CHANNEL, "-p", _command(keys), "-n", "-t", "string", "-s", shlex.join(command))
        where = "Settings > Keyboard > Application Shortcuts"
        return Binding(self.name, keys, f"an application shortcut of the desktop ({where})", replaced)

    def unbind(self, binding: Binding) -> None:
        """Remove the entry and restore what it replaced."""
        run("xfconf-query", "-c", CHANNEL, "-p", _command(binding.keys), "-r")
        for path, value in binding.replaced.items():
            run("xfconf-query", "-c", CHANNEL, "-p", path, "-n", "-t", "string", "-s", value)


def _command(keys: str) -> str:
    return f"/commands/custom/{keys}"


def _get(path: str) -> str:
    try:
        return run("xfconf-query", "-c", CHANNEL, "-p", path)
    except ShortcutError:
        return ""  # not set
