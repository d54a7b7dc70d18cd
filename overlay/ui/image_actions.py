"""The actions on the image that is shown: save, copy, open its folder, again, vary, reuse, delete."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gi.repository import Gio, GLib, Gtk

from overlay.translate import _
from overlay.ui.file_dialog import FileDialog
from overlay.ui.images import clipboard_content
from overlay.viewmodels.file_names import save_new
from overlay.viewmodels.session import Session
from overlay.viewmodels.shown_job import ShownJob

IMAGE_TO_IMAGE = "image-to-image"
WITHOUT_IMAGE = ("again", "reuse", "delete")
"""Actions that also work on a job that failed or was cancelled."""


def images_folder() -> Path:
    """The default folder for saved images, inside the user's folder for pictures."""
    folder = GLib.get_user_special_dir(GLib.UserDirectory.DIRECTORY_PICTURES)
    return (Path(folder) if folder else Path.home() / "Pictures") / "NeuroLux"


class Toast(Protocol):
    """Shows a message in the window, with a button if there is something to press."""

    def __call__(self, text: str, button: str = "", pressed: Callable[[], object] | None = None) -> None:
        """Show ``text``. ``pressed`` is called for the button."""
        ...


def add_action(window: Gtk.ApplicationWindow, name: str, run: Callable[[], object]) -> Gio.SimpleAction:
    """Give ``window`` the action ``win.name``."""
    action = Gio.SimpleAction.new(name, None)
    action.connect("activate", lambda *_: run())
    window.add_action(action)
    return action


class ImageActions:
    """The actions of ``window`` on the image that ``shown`` returns; they are disabled while there is none.

    ``choose`` shows the image with a key.
    """

    def __init__(
        self,
        window: Gtk.ApplicationWindow,
        session: Session,
        shown: Callable[[], ShownJob | None],
        choose: Callable[[str], object],
        toast: Toast,
    ) -> None:
        self._window = window
        self._session = session
        self._shown = shown
        self._choose = choose
        self._toast = toast
        self._dialog = FileDialog()
        runs = {
            "save": self.save,
            "save-as": self.save_as,
            "copy": self.copy,
            "open-folder": self.open_folder,
            "again": self.again,
            "vary": self.vary,
            "reuse": self.reuse,
            "delete": self.delete,
        }
        self._actions = {name: add_action(window, name, run) for name, run in runs.items()}
        self._take_back: Callable[[], object] | None = None
        self._undo = add_action(window, "undo", self.undo)
        self._undo.set_enabled(False)

    def update(self, shown: ShownJob | None) -> None:
        """Enable the actions that are possible."""
        here = shown is not None and shown.data is not None
        ended = here or (shown is not None and bool(shown.problem))
        for name, action in self._actions.items():
            action.set_enabled(ended if name in WITHOUT_IMAGE else here)
        image = here and shown is not None and shown.is_image
        self._actions["copy"].set_enabled(image)
        self._actions["vary"].set_enabled(image and self.can_vary)

    @property
    def can_vary(self) -> bool:
        """Whether the service has a mode that starts from an image."""
        return IMAGE_TO_IMAGE in self._session.modes

    def save(self) -> None:
        """Save to the last used folder, under a new name."""
        shown = self._shown()
        if shown is not None:
            self.save_shown(shown)

    def save_shown(self, shown: ShownJob) -> None:
        """Save ``shown``, which need not be what the window shows now."""
        if shown.data is not None:
            self._write(self._folder(), shown.file_name, shown.data)

    def save_as(self) -> None:
        """Ask where to save, and remember the folder."""
        shown = self._shown()
        if shown is None or shown.data is None:
            return
        data = shown.data
        chooser = Gtk.FileChooserNative.new(_("Save image"), self._window, Gtk.FileChooserAction.SAVE, None, None)
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        chooser.set_current_folder(Gio.File.new_for_path(str(folder)))
        chooser.set_current_name(shown.file_name)

        def chosen(path: Path) -> None:
            self._session.preferences.save_folder = str(path.parent)
            self._write(path.parent, path.name, data)

        self._dialog.show(chooser, chosen)

    def copy(self) -> None:
        """Put the image on the clipboard."""
        shown = self._shown()
        if shown is not None and shown.data is not None:
            self._window.get_clipboard().set_content(clipboard_content(shown.data, shown.mime))
            self._toast(_("Copied"))

    def open_folder(self) -> None:
        """Open the folder of saved images in the file manager."""
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        Gtk.show_uri(self._window, GLib.filename_to_uri(str(folder)), 0)

    def again(self) -> None:
        """Generate again with the same settings and a new seed."""
        shown = self._shown()
        if shown is not None:
            self._session.send({name: value for name, value in shown.settings.items() if name != "seed"})

    def vary(self) -> None:
        """Open the image-to-image form with this image in it."""
        shown, session = self._shown(), self._session
        if shown is None or shown.data is None:
            return
        session.choose_mode(IMAGE_TO_IMAGE)
        if session.form is not None:
            session.form.use({**shown.settings, "seed": None}, shown.model)
            session.form.set("image", f"data:{shown.mime};base64,{base64.b64encode(shown.data).decode()}")

    def reuse(self) -> None:
        """Copy the settings of the image to the form."""
        shown, session = self._shown(), self._session
        if shown is None:
            return
        mode = shown.settings.get("mode")
        if mode in session.modes and session.form and session.form.mode != mode:
            session.choose_mode(str(mode))
        if session.form is not None:
            session.form.use(shown.settings, shown.model)

    def delete(self) -> None:
        """Remove the image from the history. The toast undoes that, and so does Ctrl+Z until the form is changed."""
        shown, session = self._shown(), self._session
        if shown is None:
            return
        undo = session.delete(shown.key)
        if undo is None:
            return
        left = [undo]
        form = session.form
        before = dict(form.touched) if form is not None else {}

        def take_back() -> None:
            forget()
            while left:  # once, with the key or the button
                left.pop()()
                self._choose(shown.key)

        def forget() -> None:
            for disconnect in connections:
                disconnect()
            if self._take_back is take_back:
                self._take_back = None
                self._undo.set_enabled(False)  # Ctrl+Z belongs to the prompt again

        def changed() -> None:
            if form is not None and form.touched != before:  # not by a newer list of models
                forget()

        connections = [session.form_replaced.connect(forget)]
        if form is not None:
            connections.append(form.changed.connect(changed))
        self._take_back = take_back
        self._undo.set_enabled(True)
        self._toast(_("Removed from history"), _("Undo"), take_back)

    def undo(self) -> None:
        """Undo the last deletion."""
        if self._take_back is not None:
            self._take_back()

    def _folder(self) -> Path:
        remembered = self._session.preferences.save_folder
        return Path(remembered) if remembered else images_folder()

    def _write(self, folder: Path, name: str, data: bytes) -> None:
        try:
            path = save_new(folder, name, data)
        except OSError as error:
            text = _("Cannot write to {folder}: {reason}").format(folder=folder, reason=error.strerror or error)
            self._toast(text, _("Save as…"), self.save_as)
            return
        self._session.preferences.save()
        self._toast(_("Saved as {name}").format(name=path.name), _("Open folder"), self.open_folder)
