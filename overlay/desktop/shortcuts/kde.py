"""Plasma's global shortcuts: a launch shortcut of our desktop entry, in kglobalshortcutsrc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from overlay.desktop.shortcuts.binding import APPLICATION_ID, Binding, ShortcutError, desktops, has, run

RUNNER = "org.kde.krunner.desktop"
"""KRunner has Alt+Space by default."""


class KdeBinding:
    """The ``_launch`` key of our entry; Plasma 6 keeps services in a group of their own, Plasma 5 does not."""

    name = "kde"

    def available(self, environment: Mapping[str, str]) -> bool:
        """Plasma runs, with its configuration tools."""
        return "kde" in desktops(environment) and self._writer() is not None

    def bind(self, command: Sequence[str], keys: str) -> Binding:
        """Bind the launch of our desktop entry (``command`` is what the entry runs on activation)."""
        theirs = self._read(RUNNER)
        replaced = {}
        if plasma_keys(keys) in theirs:
            replaced[RUNNER] = theirs
            self._write(RUNNER, theirs.replace(plasma_keys(keys), "none"))
        self._write(f"{APPLICATION_ID}.desktop", plasma_keys(keys))
        self._reload()
        where = "System Settings > Keyboard > Shortcuts"
        return Binding(self.name, keys, f"a shortcut of Plasma ({where}); it works after the next login", replaced)

    def unbind(self, binding: Binding) -> None:
        """Unbind, and give KRunner its key back."""
        self._write(f"{APPLICATION_ID}.desktop", "none")
        for group, value in binding.replaced.items():
            self._write(group, value)
        self._reload()

    @staticmethod
    def _writer() -> str | None:
        return next((name for name in ("kwriteconfig6", "kwriteconfig5") if has(name)), None)

    def _groups(self, entry: str) -> list[str]:
        groups = ["services", entry] if self._writer() == "kwriteconfig6" else [entry]
        return [part for group in groups for part in ("--group", group)]

    def _write(self, entry: str, value: str) -> None:
        writer = self._writer()
        assert writer is not None
        if writer == "kwriteconfig5" and value.count(",") < 2:
            value = f"{value},none,NeuroLux"  # present keys, default keys, name
        run(writer, "--file", "kglobalshortcutsrc", *self._groups(entry), "--key", "_launch", value)

    def _read(self, entry: str) -> str:
        reader = (self._writer() or "").replace("write", "read")
        try:
            return run(reader, "--file", "kglobalshortcutsrc", *self._groups(entry), "--key", "_launch")
        except ShortcutError:
            return ""

    @staticmethod
    def _reload() -> None:
        """Ask the running kglobalaccel to look again; older ones only do at the next login."""
        if has("kbuildsycoca6"):
            run("kbuildsycoca6")


def plasma_keys(keys: str) -> str:
    """``<Alt>space`` as Qt writes it: ``Alt+Space``."""
    return keys.replace("<", "").replace(">", "+").replace("space", "Space")
