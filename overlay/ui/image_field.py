"""An image field: chosen, dropped or pasted, and sent as a data URL or as the name of an earlier image."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gi.repository import Gdk, Gio, GLib, Gtk

from overlay.translate import _
from overlay.ui.file_dialog import FileDialog
from overlay.ui.images import texture

HEIGHT = 140
PATTERNS = ("image/png", "image/jpeg", "image/webp")


class ImageField(Gtk.Box):
    """``changed`` is called with a data URL, or with None when the image is removed."""

    def __init__(self, label: str, description: str, changed: Callable[[str | None], object]) -> None:
        super().__init__(orientation=Gtk.Orientation.VERTICAL, spacing=6)
        self._changed = changed
        self._label = label
        self._dialog = FileDialog()
        title = Gtk.Label(label=label, xalign=0)
        title.add_css_class("heading")
        self._image = Gtk.Picture(can_shrink=True, height_request=HEIGHT)
        self._image.set_alternative_text(label)
        self._hint = Gtk.Label(label=_("Drop or paste an image here"), height_request=HEIGHT)
        self._hint.add_css_class("dim-label")
        self._stack = Gtk.Stack()
        self._stack.add_named(self._hint, "empty")
        self._stack.add_named(self._image, "image")
        frame = Gtk.Frame(child=self._stack, tooltip_text=description, focusable=True)
        frame.update_property([Gtk.AccessibleProperty.LABEL], [label])
        frame.add_css_class("drop-target")
        self._problem = Gtk.Label(xalign=0, wrap=True, visible=False)
        self._problem.add_css_class("problem")
        buttons = Gtk.Box(spacing=6)
        for text, pressed in ((_("Choose…"), self._choose), (_("Paste"), self._paste), (_("Remove"), self._remove)):
            button = Gtk.Button(label=text)
            button.connect("clicked", pressed)
            buttons.append(button)
        for widget in (title, frame, self._problem, buttons):
            self.append(widget)
        drop = Gtk.DropTarget.new(Gdk.FileList, Gdk.DragAction.COPY)
        drop.set_gtypes([Gdk.FileList, Gdk.Texture])
        drop.connect("drop", self._dropped)
        frame.add_controller(drop)

    def show_value(self, value: str | None) -> None:
        """Show the value of the form: a data URL, a name, or nothing."""
        shown = texture(base64.b64decode(value.partition(",")[2])) if value and value.startswith("data:") else None
        if shown is not None:
            self._image.set_paintable(shown)
        elif value:
            self._hint.set_text(_("The image from the earlier job"))
        else:
            self._hint.set_text(_("Drop or paste an image here"))
        self._stack.set_visible_child_name("image" if shown is not None else "empty")

    def _dropped(self, _: object, value: Any, __: float, ___: float) -> bool:
        if isinstance(value, Gdk.Texture):
            self._take(value.save_to_png_bytes().get_data() or b"", "image/png")
            return True
        files = value.get_files() if isinstance(value, Gdk.FileList) else []
        if files and files[0].get_path():
            self._read(Path(files[0].get_path()))
        return bool(files)

    def _paste(self, _: object) -> None:
        def pasted(clipboard: Gdk.Clipboard, result: Gio.AsyncResult) -> None:
            try:
                found = clipboard.read_texture_finish(result)
            except GLib.Error:
                found = None
            if found is None:
                self._say(_no_image())
            else:
                self._take(found.save_to_png_bytes().get_data() or b"", "image/png")

        self.get_clipboard().read_texture_async(None, pasted)

    def _choose(self, _: object) -> None:
        chooser = Gtk.FileChooserNative.new(self._label, self.get_root(), Gtk.FileChooserAction.OPEN, None, None)
        images = Gtk.FileFilter()
        for mime in PATTERNS:
            images.add_mime_type(mime)
        chooser.add_filter(images)
        self._dialog.show(chooser, self._read)

    def _read(self, path: Path) -> None:
        mime = mimetypes.guess_type(path.name)[0] or ""
        try:
            data = path.read_bytes()
        except OSError as error:
            self._say(_("Cannot read {name}: {reason}").format(name=path.name, reason=error.strerror))
            return
        if texture(data) is None:
            self._say(_("{name} cannot be used as an image; choose a PNG, JPEG or WebP file").format(name=path.name))
            return
        self._take(data, mime if mime.startswith("image/") else "image/png")

    def _take(self, data: bytes, mime: str) -> None:
        self._say("")
        self._changed(f"data:{mime};base64,{base64.b64encode(data).decode()}")

    def _remove(self, _: object) -> None:
        self._say("")
        self._changed(None)

    def _say(self, problem: str) -> None:
        self._problem.set_text(problem)
        self._problem.set_visible(bool(problem))


def _no_image() -> str:
    return _("There is no image on the clipboard")
