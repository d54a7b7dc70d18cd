"""Keeps a window on top and off the task bar on X11, through the window manager (EWMH, ``_NET_WM_STATE``)."""

from __future__ import annotations

from typing import Any

from gi.repository import GLib, Gtk
from Xlib import X
from Xlib.display import Display
from Xlib.protocol import event

ADD = 1
FROM_A_PROGRAM = 1
STATES = ("_NET_WM_STATE_ABOVE", "_NET_WM_STATE_SKIP_TASKBAR")


class KeepAbove:
    """Asks again whenever ``window`` is shown: a window manager forgets the states of a hidden window.

    GDK overwrites the property before it shows a window, so the window manager must be asked. It ignores requests for
    windows that it does not manage yet, so it must be asked afterwards.
    """

    def __init__(self, window: Gtk.Window) -> None:
        self._window = window
        self._x = Display(window.get_display().get_name())
        self._type = self._x.intern_atom("_NET_WM_STATE")
        self._states = [self._x.intern_atom(name) for name in STATES]
        window.connect("map", lambda _: GLib.idle_add(self._ask))

    def _ask(self) -> bool:
        surface: Any = self._window.get_surface()
        if surface is not None and self._window.get_mapped():
            # This is another connection than GDK's: the request must not overtake GDK's "show this window".
            self._window.get_display().sync()
            message = event.ClientMessage(
                window=self._x.create_resource_object("window", surface.get_xid()),
                client_type=self._type,
                data=(32, [ADD, *self._states, FROM_A_PROGRAM, 0]),
            )
            everyone = X.SubstructureRedirectMask | X.SubstructureNotifyMask
            self._x.screen().root.send_event(message, event_mask=everyone)
            self._x.flush()
        return GLib.SOURCE_REMOVE
