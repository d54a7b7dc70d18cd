"""The desktop's own dialog for a file to open or to save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gi.repository import Gtk


class FileDialog:
    """Shows one dialog at a time for a widget."""

    def __init__(self) -> None:
        self._open: Gtk.FileChooserNative | None = None

    def show(self, chooser: Gtk.FileChooserNative, chosen: Callable[[Path], object]) -> None:
        """Show ``chooser``; ``chosen`` is called with the file, unless the user cancels or it is on no local path."""

        def answered(_: object, response: int) -> None:
            file = chooser.get_file()
            if response == Gtk.ResponseType.ACCEPT and file is not None and file.get_path():
                chosen(Path(file.get_path()))
            self._open = None

        chooser.connect("response", answered)
        self._open = chooser  # GTK does not keep a native dialog alive by itself
        chooser.show()
