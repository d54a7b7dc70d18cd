"""The slim bar that the shortcut shows: an entry and the 🎨 button."""

from __future__ import annotations

from gi.repository import Gdk, Gtk

from overlay.ui.banner import Banner
from overlay.ui.files import UI_FOLDER
from overlay.ui.host import WindowHost
from overlay.viewmodels.session import Session


@Gtk.Template(filename=str(UI_FOLDER / "bar.ui"))
class Bar(Gtk.ApplicationWindow):
    """A window of one line. Escape hides it, and so does opening the generate window."""

    __gtype_name__ = "NeuroLuxBar"
    entry: Gtk.Entry = Gtk.Template.Child()
    banner: Banner = Gtk.Template.Child()

    def __init__(self, host: WindowHost, session: Session) -> None:
        super().__init__()
        self._host = host
        keys = Gtk.EventControllerKey(propagation_phase=Gtk.PropagationPhase.CAPTURE)
        keys.connect("key-pressed", self._key_pressed)
        self.add_controller(keys)
        self.entry.connect("activate", lambda _: self._open(start=False))
        self.banner.follow(session.connection)

    def reveal(self) -> None:
        """Come to the front with the focus in the entry."""
        self.present()
        self.entry.grab_focus()

    def _key_pressed(self, _: object, key: int, __: int, state: Gdk.ModifierType) -> bool:
        if key == Gdk.KEY_Escape:
            self.set_visible(False)
            return True
        if key in (Gdk.KEY_Return, Gdk.KEY_KP_Enter) and state & Gdk.ModifierType.CONTROL_MASK:
            self._open(start=True)
            return True
        return False

    def _open(self, *, start: bool) -> None:
        prompt = self.entry.get_text().strip()
        self.entry.set_text("")
        self._host.show_generate(prompt or None, start=start and bool(prompt))
