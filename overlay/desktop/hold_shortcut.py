"""The running overlay's own hold on Alt+Space, where the desktop's settings do not have it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gi.repository import Gdk, Gio

from overlay.desktop.shortcuts.binding import HELD_HERE
from overlay.desktop.shortcuts.portal import PortalShortcut, portal_version
from overlay.viewmodels.preferences import Preferences

_log = logging.getLogger(__name__)


def hold_shortcut(application: Gio.Application, preferences: Preferences, pressed: Callable[[], object]) -> object:
    """Hold the key by the portal, or by an X11 grab; returns what holds it (keep it), None where nothing can.

    Only where `imagegen overlay --install` was run and found no settings to write: a program that was only tried out
    takes no key away from others.
    """
    if preferences.shortcut.get("means") != HELD_HERE:
        return None
    connection = application.get_dbus_connection()
    if connection is not None and portal_version(connection):
        portal = PortalShortcut(connection, pressed, lambda keys: _log.info("the desktop bound %s", keys or "no key"))
        portal.start()
        return portal
    display = Gdk.Display.get_default()
    if display is not None and "X11" in type(display).__name__:
        from overlay.desktop.shortcuts.x11_grab import GrabRefused, X11Grab

        try:
            return X11Grab(display.get_name(), pressed)
        except GrabRefused as error:
            _log.warning("Alt+Space is not ours: %s; bind another key to: imagegen overlay --toggle", error)
    return None
