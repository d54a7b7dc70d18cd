"""The GlobalShortcuts portal: the desktop asks the user once, and signals the running overlay at each key press.

CreateSession, BindShortcuts, then the signal Activated (org.freedesktop.portal.GlobalShortcuts, version 1). Backends:
Plasma, Hyprland, GNOME from 48. The binding belongs to the application and outlives it, but needs it to be running.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from gi.repository import Gio, GLib

from overlay.translate import _

BUS = "org.freedesktop.portal.Desktop"
PATH = "/org/freedesktop/portal/desktop"
INTERFACE = "org.freedesktop.portal.GlobalShortcuts"
SESSION = "org.freedesktop.portal.Session"
SHORTCUT = "toggle"
TRIGGER = "ALT+space"
ANSWER_MS = 3000
_log = logging.getLogger(__name__)


def portal_version(connection: Gio.DBusConnection) -> int:
    """The version of the portal; 0 if this desktop has none."""
    try:
        answer = connection.call_sync(
            BUS,
            PATH,
            "org.freedesktop.DBus.Properties",
            "Get",
            GLib.Variant("(ss)", (INTERFACE, "version")),
            GLib.VariantType("(v)"),
            Gio.DBusCallFlags.NONE,
            ANSWER_MS,
            None,
        )
    except GLib.Error:
        return 0
    return int(answer.unpack()[0])


class PortalShortcut:
    """Holds the portal session of the running overlay. ``bound`` is called with the keys that the desktop granted."""

    def __init__(
        self,
        connection: Gio.DBusConnection,
        activated: Callable[[], object],
        bound: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._activated = activated
        self._bound = bound
        self._session = ""
        connection.signal_subscribe(
            BUS, INTERFACE, "Activated", PATH, None, Gio.DBusSignalFlags.NONE, self._on_activated
        )

    def start(self) -> None:
        """Open the session and bind. The desktop may ask the user the first time."""
        token, options = _token_options()
        options["session_handle_token"] = GLib.Variant("s", f"neurolux_{uuid4().hex}")
        self._call("CreateSession", GLib.Variant("(a{sv})", (options,)), token, self._session_created)

    def release(self) -> None:
        """Close the session. The desktop keeps what the user granted for the next one."""
        if self._session:
            self._connection.call(
                BUS, self._session, SESSION, "Close", None, None, Gio.DBusCallFlags.NONE, ANSWER_MS, None, None
            )
            self._session = ""

    def _session_created(self, results: dict[str, object]) -> None:
        self._session = str(results["session_handle"])
        shortcut = {
            "description": GLib.Variant("s", _("Show or hide the NeuroLux overlay")),
            "preferred_trigger": GLib.Variant("s", TRIGGER),
        }
        token, options = _token_options()
        arguments = GLib.Variant("(oa(sa{sv})sa{sv})", (self._session, [(SHORTCUT, shortcut)], "", options))
        self._call("BindShortcuts", arguments, token, self._shortcuts_bound)

    def _shortcuts_bound(self, results: dict[str, object]) -> None:
        shortcuts = results.get("shortcuts")
        trigger = ""
        if isinstance(shortcuts, list) and shortcuts:
            trigger = str(shortcuts[0][1].get("trigger_description", ""))
        self._bound(trigger)

    def _on_activated(self, *signal: object) -> None:
        parameters: Any = signal[5]
        session, shortcut = parameters.unpack()[:2]
        if session == self._session and shortcut == SHORTCUT:
            self._activated()

    def _call(
        self, method: str, arguments: GLib.Variant, token: str, done: Callable[[dict[str, object]], None]
    ) -> None:
        """Call ``method``, which answers with a signal on an object whose path follows from our name and ``token``."""
        sender = (self._connection.get_unique_name() or "").lstrip(":").replace(".", "_")
        path = f"/org/freedesktop/portal/desktop/request/{sender}/{token}"

        def responded(*signal: object) -> None:
            self._connection.signal_unsubscribe(subscription)
            parameters: Any = signal[5]
            code, results = parameters.unpack()
            if code == 0:
                done(results)
            else:
                _log.warning("the desktop did not grant the global shortcut (%s answered %d)", method, code)

        subscription = self._connection.signal_subscribe(
            BUS, "org.freedesktop.portal.Request", "Response", path, None, Gio.DBusSignalFlags.NONE, responded
        )

        def called(connection: Gio.DBusConnection, result: Gio.AsyncResult) -> None:
            try:
                connection.call_finish(result)
            except GLib.Error as error:
                connection.signal_unsubscribe(subscription)
                _log.warning("the global shortcut portal refused %s: %s", method, error.message)

        self._connection.call(
            BUS, PATH, INTERFACE, method, arguments, None, Gio.DBusCallFlags.NONE, ANSWER_MS, None, called
        )


def _token_options() -> tuple[str, dict[str, GLib.Variant]]:
    """A new token, and the options that announce it."""
    token = f"neurolux_{uuid4().hex}"
    return token, {"handle_token": GLib.Variant("s", token)}
