"""org.freedesktop.Notifications as a desktop's shell has it: keeps what it is told, and presses the buttons."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NAME = "org.freedesktop.Notifications"
PATH = "/org/freedesktop/Notifications"
INTERFACE = f"""<node><interface name="{NAME}">
<method name="Notify">
 <arg type="s" direction="in"/><arg type="u" direction="in"/><arg type="s" direction="in"/>
 <arg type="s" direction="in"/>
 <arg type="s" direction="in"/><arg type="as" direction="in"/><arg type="a{{sv}}" direction="in"/>
 <arg type="i" direction="in"/><arg type="u" direction="out"/>
</method>
<method name="CloseNotification"><arg type="u" direction="in"/></method>
<method name="GetCapabilities"><arg type="as" direction="out"/></method>
<method name="GetServerInformation">
 <arg type="s" direction="out"/><arg type="s" direction="out"/><arg type="s" direction="out"/>
 <arg type="s" direction="out"/>
</method>
<signal name="ActionInvoked"><arg type="u"/><arg type="s"/></signal>
<signal name="NotificationClosed"><arg type="u"/><arg type="u"/></signal>
</interface></node>"""


@dataclass(frozen=True)
class Note:
    """One notification as it is shown."""

    number: int
    title: str
    body: str
    buttons: dict[str, str]
    """Labels, and the names of their actions."""


@dataclass
class NotificationDaemon:
    """What is shown. Use `notification_daemon`."""

    connection: Any
    notes: list[Note] = field(default_factory=list)

    def titled(self, title: str) -> list[Note]:
        """Those whose title begins so."""
        return [note for note in self.notes if note.title.startswith(title)]

    def press(self, note: Note, label: str) -> None:
        """Press the button ``label`` of ``note``."""
        from gi.repository import GLib

        action = GLib.Variant("(us)", (note.number, note.buttons[label]))
        self.connection.emit_signal(None, PATH, NAME, "ActionInvoked", action)

    def called(self, *call: Any) -> None:
        """A method call from the bus (GDBus' handler)."""
        from gi.repository import GLib

        method, parameters, invocation = call[4:7]
        match method:
            case "Notify":
                _app, _replaces, _icon, title, body, actions, _hints, _expires = parameters.unpack()
                buttons = dict(zip(actions[1::2], actions[::2], strict=True))
                self.notes.append(Note(len(self.notes) + 1, title, body, buttons))
                invocation.return_value(GLib.Variant("(u)", (len(self.notes),)))
            case "GetCapabilities":
                invocation.return_value(GLib.Variant("(as)", (["actions", "body"],)))
            case "GetServerInformation":
                invocation.return_value(GLib.Variant("(ssss)", ("tests", "neurolux", "1", "1.2")))
            case _:
                invocation.return_value(None)


@contextlib.contextmanager
def notification_daemon(bus: str) -> Iterator[NotificationDaemon]:
    """A notification daemon on the bus at address ``bus``."""
    from gi.repository import Gio, GLib

    context = GLib.MainContext.new()
    loop = GLib.MainLoop.new(context, False)
    ready = threading.Event()
    daemons: list[NotificationDaemon] = []

    def serve() -> None:
        context.push_thread_default()
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        connection: Any = Gio.DBusConnection.new_for_address_sync(bus, flags, None, None)
        daemons.append(NotificationDaemon(connection))
        described = Gio.DBusNodeInfo.new_for_xml(INTERFACE).interfaces[0]
        connection.register_object(PATH, described, daemons[0].called, None, None)
        Gio.bus_own_name_on_connection(connection, NAME, Gio.BusNameOwnerFlags.NONE, lambda *_: ready.set(), None)
        loop.run()
        connection.close_sync(None)

    thread = threading.Thread(target=serve, name="notifications", daemon=True)
    thread.start()
    assert ready.wait(20), "nobody gave us the name of the notification daemon"
    try:
        yield daemons[0]
    finally:
        loop.quit()
        thread.join(10)
