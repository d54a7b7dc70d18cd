"""Keeps the bar above other windows, by the best means that the display server has."""

from __future__ import annotations

import ctypes
import logging

from gi.repository import Gdk, GLib, Gtk

_log = logging.getLogger(__name__)
LAYER_SHELL_LIBRARY = "libgtk4-layer-shell.so.0"


def prepare_overlay_window(window: Gtk.Window) -> str:
    """Arrange for ``window`` to stay above others; returns the means: ``layer-shell``, ``x11`` or ``none``.

    Layer shell must be loaded before GTK connects to the display (gtk4-layer-shell's linking.md), so it works where
    the library was preloaded; a compositor without the protocol (GNOME) gets an ordinary undecorated window.
    """
    display = window.get_display()
    if type(display).__name__ == "X11Display" or "X11" in type(display).__name__:
        window.connect("map", lambda _: GLib.idle_add(_keep_above_x11, window))
        return "x11"
    if _use_layer_shell(window):
        return "layer-shell"
    return "none"


def _use_layer_shell(window: Gtk.Window) -> bool:
    try:
        ctypes.CDLL(LAYER_SHELL_LIBRARY)
        import gi

        gi.require_version("Gtk4LayerShell", "1.0")
        from gi.repository import Gtk4LayerShell as LayerShell
    except (OSError, ValueError, ImportError):
        return False
    if not LayerShell.is_supported():
        return False
    LayerShell.init_for_window(window)
    LayerShell.set_layer(window, LayerShell.Layer.OVERLAY)
    LayerShell.set_anchor(window, LayerShell.Edge.TOP, True)
    LayerShell.set_margin(window, LayerShell.Edge.TOP, 120)
    LayerShell.set_keyboard_mode(window, LayerShell.KeyboardMode.ON_DEMAND)
    return True


def _keep_above_x11(window: Gtk.Window) -> bool:
    """Ask the window manager (EWMH ``_NET_WM_STATE``) to keep the window above and off the task bar."""
    surface = window.get_surface()
    if surface is None:
        return GLib.SOURCE_REMOVE
    from Xlib import X
    from Xlib.display import Display
    from Xlib.protocol import event

    display = Display(Gdk.Display.get_default().get_name())
    try:
        root = display.screen().root
        xwindow = display.create_resource_object("window", surface.get_xid())
        state = display.intern_atom("_NET_WM_STATE")
        for first, second in (("_NET_WM_STATE_ABOVE", "_NET_WM_STATE_SKIP_TASKBAR"),):
            message = event.ClientMessage(
                window=xwindow,
                client_type=state,
                data=(32, [1, display.intern_atom(first), display.intern_atom(second), 1, 0]),
            )
            root.send_event(message, event_mask=X.SubstructureRedirectMask | X.SubstructureNotifyMask)
        display.flush()
    finally:
        display.close()
    return GLib.SOURCE_REMOVE
