"""Makes the overlay known to the desktop: entry, icon, D-Bus activation, autostart and the global shortcut."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from overlay.desktop.shortcuts.binding import APPLICATION_ID, HELD_HERE, KEYS, Binding, ShortcutError, toggle_command
from overlay.desktop.shortcuts.choose import BY_HAND, as_record, bind_shortcut, unbind_shortcut
from overlay.viewmodels.preferences import Preferences

DATA = Path(__file__).parent.parent / "data"
DESKTOP_ENTRY = """[Desktop Entry]
Type=Application
Name=NeuroLux
GenericName=Image generation
Comment=Pictures from prompts
Exec={command}
Icon={id}
Terminal=false
Categories=Graphics;
Keywords=picture;image;generate;prompt;AI;
StartupNotify=false
DBusActivatable={activatable}
"""
SERVICE = """[D-BUS Service]
Name={id}
Exec={command} --gapplication-service
"""


def data_home() -> Path:
    """``$XDG_DATA_HOME``."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def config_home() -> Path:
    """``$XDG_CONFIG_HOME``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def files() -> dict[Path, str]:
    """What is installed, and its text."""
    command = shlex.join([sys.executable, "-m", "overlay"])
    return {
        data_home() / "applications" / f"{APPLICATION_ID}.desktop": DESKTOP_ENTRY.format(
            id=APPLICATION_ID, command=command, activatable="true"
        ),
        data_home() / "dbus-1" / "services" / f"{APPLICATION_ID}.service": SERVICE.format(
            id=APPLICATION_ID, command=command
        ),
        # Not by D-Bus: a desktop would then show the bar at every login.
        config_home() / "autostart" / f"{APPLICATION_ID}.desktop": DESKTOP_ENTRY.format(
            id=APPLICATION_ID, command=f"{command} --hidden", activatable="false"
        ),
        data_home() / "icons" / "hicolor" / "scalable" / "apps" / f"{APPLICATION_ID}.svg": (
            DATA / "icons" / "hicolor" / "scalable" / "apps" / f"{APPLICATION_ID}.svg"
        ).read_text(encoding="utf-8"),
    }


def install() -> list[str]:
    """Install everything for this user; returns what was done, line by line."""
    told = []
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        told.append(f"wrote {path}")
    preferences = Preferences.load()
    command = shlex.join(toggle_command())
    if preferences.shortcut:
        unbind_shortcut(preferences.shortcut)
        preferences.shortcut = {}
    try:
        binding = bind_shortcut()
    except ShortcutError as error:
        told.append(f"Alt+Space could not be bound: {error}; {BY_HAND}: {command}")
        return told
    if binding is not None:
        preferences.shortcut = as_record(binding)
        preferences.save()
        told.append(f"Alt+Space shows the overlay: {binding.description}")
        told += [f"took the key from {name} (was {value})" for name, value in binding.replaced.items()]
    else:
        preferences.shortcut = as_record(Binding(HELD_HERE, KEYS, "held by the running overlay"))
        preferences.save()
        told.append(
            "Alt+Space: this desktop has no key bindings that a program can set. The overlay asks for the key itself "
            f"while it runs (portal, or X11 grab); if that fails, {BY_HAND}: {command}"
        )
    told.append("undo all of it with: imagegen overlay --uninstall")
    return told


def uninstall() -> list[str]:
    """Take everything away again; returns what was done."""
    told = []
    for path in files():
        if path.exists():
            path.unlink()
            told.append(f"removed {path}")
    preferences = Preferences.load()
    try:
        undone = unbind_shortcut(preferences.shortcut)
    except ShortcutError as error:
        told.append(f"the shortcut could not be taken back: {error}")
        return told
    if undone:
        told.append(f"gave Alt+Space back: {undone}")
        preferences.shortcut = {}
        preferences.save()
    return told or ["nothing was installed"]
