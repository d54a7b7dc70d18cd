"""The file dialog of the desktop, to open or to save a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gi.repository import Gtk


class FileDialog:
    """Shows one dialog at a time."""

    def __init__(self) -> None:
        self._open: Gtk.FileChooserNative | None = None

    def show(self, chooser: Gtk.FileChooserNative, chosen: Callable[[Path], object]) -> None:
        """Show ``chooser`` and call ``chosen`` with the file, unless the user cancels or the file has no local path."""

        def answered(_: object, response: int) -> None:
            file = chooser.get_file()
            if response == Gtk.ResponseType.ACCEPT and file is not None and file.get_path():
                chosen(Path(file.get_path()))
            self._open = None

        chooser.connect("response", answered)
        self._open = chooser  # GTK does not keep a native dialog alive
        chooser.show()
