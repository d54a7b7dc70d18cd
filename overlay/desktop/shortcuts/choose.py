"""Chooses the means of binding for this desktop, and undoes a binding."""

from __future__ import annotations

import os
from collections.abc import Mapping

from overlay.desktop.shortcuts.binding import HELD_HERE, KEYS, Binding, Means, ShortcutError, has, run, toggle_command
from overlay.desktop.shortcuts.gsettings import CINNAMON, GNOME, GSettingsBinding
from overlay.desktop.shortcuts.kde import KdeBinding
from overlay.desktop.shortcuts.xfce import XfceBinding

ALL_MEANS: tuple[Means, ...] = (
    GSettingsBinding("gnome", GNOME),
    GSettingsBinding("cinnamon", CINNAMON),
    XfceBinding(),
    KdeBinding(),
)
PORTAL = "held by the running overlay through the desktop's GlobalShortcuts portal (the desktop may ask you first)"
X11_GRAB = "held by the running overlay with an X11 key grab"


def bind_shortcut(environment: Mapping[str, str] = os.environ) -> Binding | None:
    """Bind Alt+Space in the desktop's settings, or else leave it to the running overlay. Raises ShortcutError.

    Returns None if neither is possible, as on a Wayland compositor without the portal.
    """
    for means in ALL_MEANS:
        if means.available(environment):
            return means.bind(toggle_command(), KEYS)
    if portal_available():
        return Binding(HELD_HERE, KEYS, PORTAL)
    if environment.get("DISPLAY") and not environment.get("WAYLAND_DISPLAY"):
        return Binding(HELD_HERE, KEYS, X11_GRAB)
    return None


def unbind_shortcut(binding: Binding) -> None:
    """Undo a binding. Raises ShortcutError."""
    for means in ALL_MEANS:
        if means.name == binding.means:
            means.unbind(binding)


def portal_available() -> bool:
    """Whether this session has the GlobalShortcuts portal."""
    if not has("gdbus"):
        return False
    portal = ["--dest", "org.freedesktop.portal.Desktop", "--object-path", "/org/freedesktop/portal/desktop"]
    asked = ["--method", "org.freedesktop.DBus.Properties.Get", "org.freedesktop.portal.GlobalShortcuts", "version"]
    try:
        run("gdbus", "call", "--session", "--timeout", "3", *portal, *asked)
    except ShortcutError:
        return False
    return True
