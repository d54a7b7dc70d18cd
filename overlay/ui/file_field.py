"""A file that is not an image, such as a zip archive: chosen or dropped, and sent as a data URL."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gi.repository import Adw, Gdk, Gtk

from bridge.contract import size_text
from overlay.translate import _
from overlay.ui.file_dialog import FileDialog

LARGEST_BYTES = 256 * 1024 * 1024
"""Larger files are not read into memory. The limit of the service is lower by default, and its error names it."""


class FileField(Adw.ActionRow):
    """``changed`` is called with a data URL, or with None when the file is removed."""

    def __init__(self, label: str, description: str, changed: Callable[[str | None], object]) -> None:
        super().__init__(title=label, tooltip_text=description, subtitle=_("No file chosen"))
        self._changed = changed
        self._label = label
        self._dialog = FileDialog()
        self._remove_button = Gtk.Button(label=_("Remove"), valign=Gtk.Align.CENTER, visible=False)
        self._remove_button.connect("clicked", lambda _: self._remove())
        choose = Gtk.Button(label=_("Choose…"), valign=Gtk.Align.CENTER)
        choose.connect("clicked", self._choose)
        for button in (self._remove_button, choose):
            self.add_suffix(button)
        self.set_activatable_widget(choose)
        drop = Gtk.DropTarget.new(Gdk.FileList, Gdk.DragAction.COPY)
        drop.connect("drop", self._dropped)
        self.add_controller(drop)
        self._name = ""

    def show_value(self, value: str | None) -> None:
        """Follow the form: only what it holds is sent."""
        self._remove_button.set_visible(bool(value))
        if not value:
            self._name = ""
        self.set_subtitle(self._name or (_("A file from an earlier job") if value else _("No file chosen")))

    def _choose(self, _button: object) -> None:
        chooser = Gtk.FileChooserNative.new(self._label, self.get_root(), Gtk.FileChooserAction.OPEN, None, None)
        self._dialog.show(chooser, self._read)

    def _dropped(self, _: object, value: Any, __: float, ___: float) -> bool:
        files = value.get_files() if isinstance(value, Gdk.FileList) else []
        if not files or not files[0].get_path():
            return False
        self._read(Path(files[0].get_path()))
        return True

    def _read(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            if size > LARGEST_BYTES:
                self.set_subtitle(
                    _("{name} is {size}, which is too large to send").format(name=path.name, size=size_text(size))
                )
                return
            data = path.read_bytes()
        except OSError as error:
            self.set_subtitle(_("Cannot read {name}: {reason}").format(name=path.name, reason=error.strerror))
            return
        mime = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        self._name = f"{path.name}, {size_text(size)}"
        self._changed(f"data:{mime};base64,{base64.b64encode(data).decode()}")

    def _remove(self) -> None:
        self._changed(None)
