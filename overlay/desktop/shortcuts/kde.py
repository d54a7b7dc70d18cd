"""Plasma's global shortcuts, in kglobalshortcutsrc: the action "toggle" of our desktop entry.

The group of an entry holds ``_launch`` and one key for each action. Plasma 6 keeps these groups in a group
``services`` and writes only the keys; Plasma 5 writes ``keys,default keys,name``. Tabs separate several keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from overlay.desktop.shortcuts.binding import APPLICATION_ID, NAME, Binding, ShortcutError, desktops, has, run

FILE = "kglobalshortcutsrc"
ENTRY = f"{APPLICATION_ID}.desktop"
ACTION = "toggle"
"""An action of the desktop entry (overlay/desktop/install.py): ``_launch`` would show the overlay and never hide it."""
RUNNER = "org.kde.krunner.desktop"
RUNNER_DEFAULT = ("Alt+Space", "Alt+F2", "Search")
"""The keys of KRunner if the file does not mention it."""
UNSET = ""


class KdeBinding:
    """Plasma reads the file when it starts, so the key works after the next login."""

    name = "kde"

    def available(self, environment: Mapping[str, str]) -> bool:
        """Whether Plasma is running and has its configuration tools."""
        return "kde" in desktops(environment) and _version() is not None

    def bind(self, command: Sequence[str], keys: str) -> Binding:
        """Bind the action of our desktop entry, which runs ``command``."""
        wanted = plasma_keys(keys)
        held = _read(RUNNER, "_launch")
        theirs = held.partition(",")[0].split("\t") if held else list(RUNNER_DEFAULT)
        replaced = {}
        if wanted in theirs:
            replaced[RUNNER] = held
            _write(RUNNER, "_launch", _entry_value([key for key in theirs if key != wanted], RUNNER_DEFAULT, "KRunner"))
        _write(ENTRY, ACTION, _entry_value([wanted], (), NAME))
        where = "System Settings > Keyboard > Shortcuts"
        return Binding(self.name, keys, f"a Plasma shortcut ({where}) that works after the next login", replaced)

    def unbind(self, binding: Binding) -> None:
        """Remove our key and give KRunner its key back."""
        _write(ENTRY, ACTION, UNSET)
        for entry, value in binding.replaced.items():
            _write(entry, "_launch", value)


def plasma_keys(keys: str) -> str:
    """``<Alt>space`` as Qt writes it: ``Alt+Space``."""
    return keys.replace("<", "").replace(">", "+").replace("space", "Space")


def _version() -> str | None:
    return next((version for version in ("6", "5") if has(f"kwriteconfig{version}")), None)


def _entry_value(keys: Sequence[str], default: Sequence[str], name: str) -> str:
    present = "\t".join(keys) or "none"
    return present if _version() == "6" else f"{present},{chr(9).join(default) or 'none'},{name}"


def _place(entry: str, key: str) -> list[str]:
    groups = ["services", entry] if _version() == "6" else [entry]
    return ["--file", FILE, *(part for group in groups for part in ("--group", group)), "--key", key]


def _write(entry: str, key: str, value: str) -> None:
    """Set ``key``; UNSET removes it."""
    run(f"kwriteconfig{_version()}", *_place(entry, key), *(["--delete"] if value == UNSET else [value]))


def _read(entry: str, key: str) -> str:
    """The value of ``key``, UNSET if there is none."""
    try:
        return run(f"kreadconfig{_version()}", *_place(entry, key))
    except ShortcutError:
        return UNSET
