"""Another program that takes files, such as a file manager: says on its output what is dropped on its window."""

from __future__ import annotations

import sys
from typing import Any

from overlay.pygobject import require_gtk

TITLE = "Drop target"
HOVERED, DROPPED = "hovered", "dropped "


def main() -> int:
    """Run until the window is closed."""
    require_gtk()
    from gi.repository import Gdk, Gtk

    def hovered(*_: Any) -> Gdk.DragAction:
        print(HOVERED, flush=True)
        return Gdk.DragAction.COPY

    def dropped(_: Any, files: Gdk.FileList, __: float, ___: float) -> bool:
        print(DROPPED + ",".join(file.get_path() or "" for file in files.get_files()), flush=True)
        return True

    def activated(application: Gtk.Application) -> None:
        window = Gtk.ApplicationWindow(application=application, title=TITLE, default_width=160, default_height=200)
        target = Gtk.DropTarget.new(Gdk.FileList, Gdk.DragAction.COPY)
        target.connect("enter", hovered)
        target.connect("drop", dropped)
        window.add_controller(target)
        window.present()

    application = Gtk.Application(application_id="org.neurolux.DropTarget")
    application.connect("activate", activated)
    return application.run([])


if __name__ == "__main__":
    sys.exit(main())
