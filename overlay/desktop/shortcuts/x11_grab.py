"""Grabs the key from the X server while the overlay runs, for X11 window managers without a list of key bindings."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from Xlib import XK, X
from Xlib.display import Display
from Xlib.error import BadAccess, CatchError

LOCKS = (0, X.LockMask, X.Mod2Mask, X.LockMask | X.Mod2Mask)
"""Caps Lock and Num Lock are modifiers too: without them the grab does not work while one is on."""
_log = logging.getLogger(__name__)


class GrabRefused(Exception):
    """Another program holds the key."""


class X11Grab:
    """Holds Alt+Space. ``pressed`` is called on a separate thread."""

    def __init__(self, display_name: str | None, pressed: Callable[[], object]) -> None:
        self._display = Display(display_name)
        self._pressed = pressed
        self._root = self._display.screen().root
        self._keycode = self._display.keysym_to_keycode(XK.string_to_keysym("space"))
        refused = CatchError(BadAccess)
        for lock in LOCKS:
            self._root.grab_key(
                self._keycode, X.Mod1Mask | lock, True, X.GrabModeAsync, X.GrabModeAsync, onerror=refused
            )
        self._display.sync()
        if refused.get_error():
            self._display.close()
            raise GrabRefused("another program holds Alt+Space")
        threading.Thread(target=self._listen, name="x11 shortcut", daemon=True).start()

    def release(self) -> None:
        """Release the key."""
        for lock in LOCKS:
            self._root.ungrab_key(self._keycode, X.Mod1Mask | lock)
        self._display.flush()

    def _listen(self) -> None:
        while True:
            try:
                event = self._display.next_event()
            except Exception as error:  # noqa: BLE001 - whatever Xlib raises, the connection is gone and the session ends
                _log.info("the X connection of the shortcut was closed: %s", error)
                return
            if event.type == X.KeyPress:
                self._pressed()
