"""A line that says what is wrong with the image service, with a Start button where that helps."""

from __future__ import annotations

from gi.repository import Gtk

from overlay.ui.files import UI_FOLDER
from overlay.viewmodels.connection import Connection


@Gtk.Template(filename=str(UI_FOLDER / "banner.ui"))
class Banner(Gtk.Box):
    """Takes no space while nothing is wrong. Both windows have one."""

    __gtype_name__ = "NeuroLuxBanner"
    revealer: Gtk.Revealer = Gtk.Template.Child()
    label: Gtk.Label = Gtk.Template.Child()
    start_button: Gtk.Button = Gtk.Template.Child()

    def follow(self, connection: Connection) -> None:
        """Show the state of ``connection`` from now on."""

        def show() -> None:
            self.label.set_text(connection.banner)
            self.start_button.set_visible(connection.can_start)
            self.revealer.set_reveal_child(bool(connection.banner))

        connection.changed.connect(show)
        show()
