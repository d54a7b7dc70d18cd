"""Holds Alt+Space in the running overlay, on desktops whose settings cannot bind it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from gi.repository import Gdk, Gio

from overlay.desktop.shortcuts.binding import HELD_HERE
from overlay.desktop.shortcuts.portal import PortalShortcut, portal_version
from overlay.desktop.shortcuts.record import read_record

_log = logging.getLogger(__name__)


class Hold(Protocol):
    """Something that holds the key."""

    def release(self) -> None:
        """Release the key."""
        ...


class ShortcutHolder:
    """Holds the key through the portal, or with an X11 grab.

    It does so only after `imagegen overlay --install` found no settings to write. An overlay that was merely tried out
    takes no key from other programs.
    """

    def __init__(self, application: Gio.Application, pressed: Callable[[], object]) -> None:
        self._application = application
        self._pressed = pressed
        self._hold: Hold | None = None

    def follow_record(self) -> None:
        """Hold or release the key, as the last installation recorded."""
        record = read_record()
        wanted = record is not None and record.means == HELD_HERE
        if wanted and self._hold is None:
            self._hold = self._take()
        elif not wanted and self._hold is not None:
            self._hold.release()
            self._hold = None

    def _take(self) -> Hold | None:
        connection = self._application.get_dbus_connection()
        if connection is not None and portal_version(connection):
            portal = PortalShortcut(
                connection, self._pressed, lambda keys: _log.info("the desktop bound %s", keys or "no key")
            )
            portal.start()
            return portal
        display = Gdk.Display.get_default()
        if display is not None and "X11" in type(display).__name__:
            from overlay.desktop.shortcuts.x11_grab import GrabRefused, X11Grab

            try:
                return X11Grab(display.get_name(), self._pressed)
            except GrabRefused as error:
                _log.warning(
                    "Alt+Space could not be grabbed: %s; bind another key to: imagegen overlay --toggle", error
                )
        return None
