"""Keeps the bar on top of other windows, by the best means of the display server."""

from __future__ import annotations

import ctypes

from gi.repository import Gtk

LAYER_SHELL_LIBRARY = "libgtk4-layer-shell.so.0"


def prepare_overlay_window(window: Gtk.Window) -> str:
    """Keep ``window`` on top of others. Returns the means: ``layer-shell``, ``x11`` or ``none``.

    Layer shell must be loaded before GTK connects to the display (gtk4-layer-shell's linking.md), so it works only if
    the library was preloaded. On a compositor without the protocol (GNOME) the window is an ordinary undecorated one.
    """
    if "X11" in type(window.get_display()).__name__:
        from overlay.desktop.keep_above import KeepAbove

        KeepAbove(window)
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
