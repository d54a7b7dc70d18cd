"""Installs the overlay for this user: menu entry, icon, D-Bus activation, autostart and the global shortcut."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from overlay.desktop.shortcuts.binding import (
    ACTIVATE_ACTION,
    APPLICATION_ID,
    HELD_HERE,
    NO_PARAMETER,
    OBJECT_PATH,
    Binding,
    ShortcutError,
    run,
    toggle_command,
)
from overlay.desktop.shortcuts.choose import bind_shortcut, unbind_shortcut
from overlay.desktop.shortcuts.record import read_record, write_record

DATA = Path(__file__).parent.parent / "data"
ICON = Path("icons", "hicolor", "scalable", "apps", f"{APPLICATION_ID}.svg")
ENTRY = """[Desktop Entry]
Type=Application
Name=NeuroLux
GenericName=Image generation
Comment=Generate images from prompts
Exec={command}
Icon={id}
Terminal=false
Categories=Graphics;
Keywords=image;picture;generate;prompt;AI;
StartupNotify=false
"""
# Activated by D-Bus. The actions are those of the application, by name.
MENU_ENTRY = (
    ENTRY
    + """DBusActivatable=true
Actions=toggle;generate;

[Desktop Action toggle]
Name=Show or hide
Exec={command} --toggle

[Desktop Action generate]
Name=Generate an image
Exec={command}
"""
)
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
    """The files to install, with their content."""
    command = shlex.join([sys.executable, "-m", "overlay"])
    entry = f"{APPLICATION_ID}.desktop"
    return {
        data_home() / "applications" / entry: MENU_ENTRY.format(id=APPLICATION_ID, command=command),
        data_home() / "dbus-1" / "services" / f"{APPLICATION_ID}.service": SERVICE.format(
            id=APPLICATION_ID, command=command
        ),
        # Not D-Bus activated: the desktop would then show the bar at every login.
        config_home() / "autostart" / entry: ENTRY.format(id=APPLICATION_ID, command=f"{command} --hidden"),
        data_home() / ICON: (DATA / ICON).read_text(encoding="utf-8"),
    }


def install() -> list[str]:
    """Install everything for this user. Returns what was done, line by line."""
    done = []
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        done.append(f"wrote {path}")
    _ask_bus("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.ReloadConfig")
    done += [line for line in _unbind() if "could not" in line]
    done += _bind()
    done.append("to undo all of this, run: imagegen overlay --uninstall")
    return done


def uninstall() -> list[str]:
    """Remove everything again. Returns what was done, line by line."""
    done = _unbind()
    for path in files():
        if path.exists():
            path.unlink()
            done.append(f"removed {path}")
    return done or ["nothing was installed"]


def _bind() -> list[str]:
    by_hand = f"bind a key to this command in your desktop's or compositor's settings: {shlex.join(toggle_command())}"
    try:
        binding = bind_shortcut()
    except ShortcutError as error:
        return [f"Alt+Space could not be bound: {error}; {by_hand}"]
    if binding is None:
        return [f"Alt+Space: this desktop does not let programs bind keys; {by_hand}"]
    write_record(binding)
    done = [f"Alt+Space shows and hides the overlay: {binding.description}"]
    done += [f"took the key from {name} (was {value or 'its default'})" for name, value in binding.replaced.items()]
    if binding.means == HELD_HERE:
        # D-Bus starts the overlay if it is not running, so that the key works now and not only after the next login.
        if not _tell_overlay():
            done.append("the overlay takes the key when it starts: run 'imagegen overlay --hidden', or log in again")
        done.append(f"if the key does nothing, another program has it; {by_hand}")
    return done


def _unbind() -> list[str]:
    binding = read_record()
    if binding is None:
        return []
    try:
        unbind_shortcut(binding)
    except ShortcutError as error:
        return [f"Alt+Space could not be released ({binding.description}): {error}"]
    write_record(None)
    if _overlay_runs():
        _tell_overlay()
    return [f"gave Alt+Space back: {binding.description}", *_restored(binding)]


def _restored(binding: Binding) -> list[str]:
    return [f"{name} has it again" for name in binding.replaced]


def _overlay_runs() -> bool:
    bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.NameHasOwner")
    return "true" in (_ask_bus(*bus, APPLICATION_ID) or "")


def _tell_overlay() -> bool:
    """Tell the overlay to read the record again. The bus starts an overlay that is not running."""
    return _ask_bus(APPLICATION_ID, OBJECT_PATH, ACTIVATE_ACTION, "shortcut-changed", *NO_PARAMETER) is not None


def _ask_bus(name: str, path: str, method: str, *arguments: str) -> str | None:
    """Call a method on the session bus. Returns None if there is no bus or no answer."""
    try:
        return run("gdbus", "call", "--session", "--dest", name, "--object-path", path, "--method", method, *arguments)
    except ShortcutError:
        return None
