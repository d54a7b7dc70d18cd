"""The application: a single instance with its command line, its actions and the windows that it keeps ready."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import Any

from gi.repository import Adw, Gdk, Gio, GLib, Gtk

from bridge.client import AsyncImageGenClient
from bridge.settings import Settings
from overlay.desktop.hold_shortcut import ShortcutHolder
from overlay.desktop.notifications import Notifications
from overlay.desktop.window_manager import prepare_overlay_window
from overlay.link import Link
from overlay.service import ServiceStarter, find_url
from overlay.translate import _
from overlay.ui.bar import Bar
from overlay.ui.files import UI_FOLDER
from overlay.ui.generate_window import GenerateWindow
from overlay.viewmodels.job_card import JobCard
from overlay.viewmodels.preferences import Preferences
from overlay.viewmodels.session import Session

APPLICATION_ID = "org.neurolux.Overlay"
_log = logging.getLogger(__name__)
READY_CHECK_S = 15
"""How often to check on the service while it is ready."""
SHORTCUTS = {
    "win.generate": ["<Control>Return"],
    "win.save": ["<Control>s"],
    "win.save-as": ["<Control><Shift>s"],
    "win.copy": ["<Control><Shift>c"],
    "win.again": ["<Control>r"],
    "win.delete": ["<Control>Delete"],
    "win.undo": ["<Control>z"],
    "window.close": ["<Control>w"],
    "app.quit": ["<Control>q"],
}


def run(arguments: list[str]) -> int:
    """Run the application, or pass ``arguments`` to the running one."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    GLib.set_prgname(APPLICATION_ID)  # window managers find the icon by it, screen readers the program
    GLib.set_application_name("NeuroLux")
    Adw.init()
    return OverlayApplication().run(arguments)


class OverlayApplication(Adw.Application):
    """One process per desktop session. Windows are hidden rather than closed, so that they reappear at once."""

    def __init__(self) -> None:
        super().__init__(application_id=APPLICATION_ID, flags=Gio.ApplicationFlags.HANDLES_COMMAND_LINE)
        self._bar: Bar | None = None
        self._window: GenerateWindow | None = None
        for name, text in (
            ("toggle", _("Show the overlay, or hide it if it is visible")),
            ("hidden", _("Start in the background and wait for the shortcut")),
        ):
            self.add_main_option(name, 0, GLib.OptionFlags.NONE, GLib.OptionArg.NONE, text, None)
        self.add_main_option(
            "generate",
            0,
            GLib.OptionFlags.NONE,
            GLib.OptionArg.STRING,
            _("Generate an image from PROMPT with the last settings"),
            _("PROMPT"),
        )

    # -- life ----------------------------------------------------------------------------------------------------

    def do_startup(self) -> None:
        """First activation: connect to the service and keep running."""
        Adw.Application.do_startup(self)
        self.hold()
        for number in (signal.SIGTERM, signal.SIGINT):
            GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, number, self._quit_on_signal)
        settings = Settings.from_environment()
        preferences = Preferences.load()
        self._link = Link(deliver=_on_main_loop)
        self._client = AsyncImageGenClient(lambda: find_url(settings), token=settings.token)
        self.session = Session(self._client, self._link, preferences)
        self.starter = ServiceStarter(settings, self.session.connection)
        self._notifications = Notifications(self)
        self.session.job_ended.connect(self._job_ended)
        self._shortcut = ShortcutHolder(self, lambda: _on_main_loop(self.toggle))
        self._add_actions()
        self._load_style()
        self._shortcut.follow_record()
        self._check_service()

    def do_shutdown(self) -> None:
        """Save the preferences and close the connection. The service keeps running."""
        self.session.remember()
        self._link.stop(self._client.close())
        Adw.Application.do_shutdown(self)

    def do_activate(self) -> None:
        """Started by its icon or by D-Bus: show the bar."""
        self.bar.reveal()

    def do_command_line(self, command_line: Gio.ApplicationCommandLine) -> int:
        """Handle a start from a terminal or from the shortcut, of this process or of a second one.

        Catches every error: without an exit status the second process would wait forever.
        """
        try:
            self._run_command(command_line)
        except Exception:
            _log.exception("the overlay could not run the command")
            return 1
        return 0

    def _run_command(self, command_line: Gio.ApplicationCommandLine) -> None:
        options = command_line.get_options_dict()
        prompt = options.lookup_value("generate", GLib.VariantType("s"))
        if prompt is not None:
            self.show_generate(prompt.get_string(), start=True)
        elif options.contains("toggle"):
            self.toggle()
        elif not options.contains("hidden"):
            self.activate()

    # -- windows -------------------------------------------------------------------------------------------------

    @property
    def bar(self) -> Bar:
        """The bar, created on first use."""
        if self._bar is None:
            self._bar = Bar(self, self.session)
            self.add_window(self._bar)
            prepare_overlay_window(self._bar)
        return self._bar

    @property
    def window(self) -> GenerateWindow:
        """The generate window, created on first use."""
        if self._window is None:
            self._window = GenerateWindow(self, self.session)
            self.add_window(self._window)
        return self._window

    def toggle(self) -> None:
        """Show or hide the bar, as the shortcut does. A grabbed key takes the focus away, so visibility decides."""
        if self.bar.is_visible():
            self.bar.set_visible(False)
        else:
            self.bar.reveal()

    def show_generate(self, prompt: str | None = None, *, start: bool = False) -> None:
        """Show the generate window with ``prompt`` in it; ``start`` generates as soon as the service is ready."""
        self.bar.set_visible(False)
        self.window.reveal(prompt, start=start)

    def show_job(self, job_id: str) -> None:
        """Show the result of a job."""
        self.window.reveal(None)
        self.window.select(job_id)

    def notify_hidden(self, text: str) -> None:
        """Say something through the desktop while no window is visible."""
        self._notifications.say(text)

    # -- the rest ------------------------------------------------------------------------------------------------

    def _add_actions(self) -> None:
        self._add_action("toggle", lambda _: self.toggle())
        self._add_action("generate", lambda _: self.show_generate())
        self._add_action("shortcut-changed", lambda _: self._shortcut.follow_record())
        self._add_action("quit", lambda _: self.quit())
        self._add_action("start-service", lambda _: self.starter.start())
        self._add_action("show-job", lambda job: self.show_job(job.get_string()), "s")
        self._add_action("save-job", lambda job: self.window.save_job(job.get_string()), "s")
        for action, keys in SHORTCUTS.items():
            self.set_accels_for_action(action, keys)

    def _add_action(self, name: str, run: Callable[[Any], object], parameter: str | None = None) -> None:
        action = Gio.SimpleAction.new(name, GLib.VariantType(parameter) if parameter else None)
        action.connect("activate", lambda _, value: run(value))
        self.add_action(action)

    def _load_style(self) -> None:
        provider = Gtk.CssProvider()
        provider.load_from_path(str(UI_FOLDER / "style.css"))
        display = Gdk.Display.get_default()
        assert display is not None  # without one GTK has already exited
        Gtk.StyleContext.add_provider_for_display(display, provider, Gtk.STYLE_PROVIDER_PRIORITY_APPLICATION)
        Gtk.IconTheme.get_for_display(display).add_search_path(str(UI_FOLDER.parent / "data" / "icons"))

    def _quit_on_signal(self) -> bool:
        self.quit()
        return GLib.SOURCE_REMOVE

    def _check_service(self) -> None:
        """Check on the service now, and again for as long as the application runs."""

        def checked() -> None:
            connection = self.session.connection
            wait_s = READY_CHECK_S if connection.ready else connection.retry_s
            GLib.timeout_add(round(wait_s * 1000), again)

        def again() -> bool:
            self._check_service()
            return GLib.SOURCE_REMOVE

        self.session.check_service(checked)

    def _job_ended(self, card: JobCard) -> None:
        window = self._window
        if window is None or not (window.is_visible() and window.is_active()):
            self._notifications.job_ended(card)


def _on_main_loop(work: Callable[[], None]) -> None:
    def once() -> bool:
        work()
        return GLib.SOURCE_REMOVE

    GLib.idle_add(once)
