"""Custom key bindings of GNOME, Cinnamon and related desktops, set with the ``gsettings`` command."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overlay.desktop.shortcuts.binding import NAME, Binding, ShortcutError, desktops, has, run

ENTRY = "neurolux"


@dataclass(frozen=True)
class Layout:
    """Where a desktop keeps its custom bindings: a list of entries, each with its own settings."""

    desktop_names: frozenset[str]
    list_schema: str
    list_key: str
    list_holds_paths: bool
    """Whether the list names an entry by its path, or by the last part of it."""
    bindings_are_lists: bool
    window_menu_schema: str
    where: str

    @property
    def entry_path(self) -> str:
        """The path of our entry."""
        return f"/{self.list_schema.replace('.', '/')}/custom-keybindings/{ENTRY}/"

    @property
    def entry(self) -> str:
        """The schema and path of our entry, as ``gsettings`` takes them."""
        return f"{self.list_schema}.custom-keybinding:{self.entry_path}"

    @property
    def list_entry(self) -> str:
        """How the list names our entry."""
        return self.entry_path if self.list_holds_paths else ENTRY


GNOME = Layout(
    desktop_names=frozenset({"gnome", "ubuntu", "unity", "budgie", "pop", "zorin"}),
    list_schema="org.gnome.settings-daemon.plugins.media-keys",
    list_key="custom-keybindings",
    list_holds_paths=True,
    bindings_are_lists=False,
    window_menu_schema="org.gnome.desktop.wm.keybindings",
    where="Settings > Keyboard > View and Customize Shortcuts > Custom Shortcuts",
)
CINNAMON = Layout(
    desktop_names=frozenset({"x-cinnamon", "cinnamon"}),
    list_schema="org.cinnamon.desktop.keybindings",
    list_key="custom-list",
    list_holds_paths=False,
    bindings_are_lists=True,
    window_menu_schema="org.cinnamon.desktop.keybindings.wm",
    where="System Settings > Keyboard > Shortcuts > Custom Shortcuts",
)
WINDOW_MENU = "activate-window-menu"
"""Alt+Space by default on both desktops, so it must release the key first."""


class GSettingsBinding:
    """The custom bindings of one desktop."""

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = name
        self._layout = layout

    def available(self, environment: Mapping[str, str]) -> bool:
        """Whether this desktop is running and has its settings."""
        if not (desktops(environment) & self._layout.desktop_names and has("gsettings")):
            return False
        try:
            return self._layout.list_schema in run("gsettings", "list-schemas").split()
        except ShortcutError:
            return False

    def bind(self, command: Sequence[str], keys: str) -> Binding:
        """Add our entry to the list, or change it."""
        replaced = self._free_key(keys)
        for key, value in (
            ("name", _quoted(NAME)),
            ("command", _quoted(shlex.join(command))),
            ("binding", str([keys]) if self._layout.bindings_are_lists else _quoted(keys)),
        ):
            run("gsettings", "set", self._layout.entry, key, value)
        entries = self._entries()
        if self._layout.list_entry not in entries:
            self._write_entries([*entries, self._layout.list_entry])
        return Binding(self.name, keys, f"a custom shortcut of the desktop ({self._layout.where})", replaced)

    def unbind(self, binding: Binding) -> None:
        """Remove our entry and give the key back to the window menu."""
        self._write_entries([entry for entry in self._entries() if entry != self._layout.list_entry])
        run("gsettings", "reset-recursively", self._layout.entry)
        for key, value in binding.replaced.items():
            run("gsettings", "set", self._layout.window_menu_schema, key, value)

    def _free_key(self, keys: str) -> dict[str, str]:
        try:
            held = run("gsettings", "get", self._layout.window_menu_schema, WINDOW_MENU)
        except ShortcutError:
            return {}  # a version without that setting does not hold the key
        bindings = _as_list(held)
        if not any(binding.lower() == keys.lower() for binding in bindings):
            return {}
        kept = [binding for binding in bindings if binding.lower() != keys.lower()]
        run("gsettings", "set", self._layout.window_menu_schema, WINDOW_MENU, _list_text(kept))
        return {WINDOW_MENU: held}

    def _entries(self) -> list[str]:
        return _as_list(run("gsettings", "get", self._layout.list_schema, self._layout.list_key))

    def _write_entries(self, entries: list[str]) -> None:
        run("gsettings", "set", self._layout.list_schema, self._layout.list_key, _list_text(entries))


def _as_list(text: str) -> list[str]:
    return list(ast.literal_eval(text.removeprefix("@as ")))


def _list_text(entries: list[str]) -> str:
    return str(entries) if entries else "@as []"


def _quoted(text: str) -> str:
    """A string in GVariant's text format."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
