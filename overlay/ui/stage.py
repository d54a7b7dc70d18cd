"""The large view: the previews of the selected job, then its image, and the actions on it."""

from __future__ import annotations

from collections.abc import Callable

from gi.repository import Adw, Gdk, GLib, Gtk

from overlay.translate import _
from overlay.ui.files import UI_FOLDER
from overlay.ui.images import drag_content, texture
from overlay.viewmodels.job_card import Progress
from overlay.viewmodels.shown_job import ShownJob

PULSE_MS = 120


@Gtk.Template(filename=str(UI_FOLDER / "stage.ui"))
class Stage(Gtk.Box):
    """Shows one ShownJob, or a hint if there is none yet."""

    __gtype_name__ = "NeuroLuxStage"
    empty_page: Gtk.Widget = Gtk.Template.Child()
    job_page: Gtk.Widget = Gtk.Template.Child()
    image: Gtk.Picture = Gtk.Template.Child()
    spinner: Gtk.Spinner = Gtk.Template.Child()
    failure: Adw.StatusPage = Gtk.Template.Child()
    caption: Gtk.Label = Gtk.Template.Child()
    progress_box: Gtk.Box = Gtk.Template.Child()
    progress: Gtk.ProgressBar = Gtk.Template.Child()
    cancel_button: Gtk.Button = Gtk.Template.Child()
    actions: Gtk.Box = Gtk.Template.Child()
    vary_button: Gtk.Button = Gtk.Template.Child()
    file_actions: Gtk.Box = Gtk.Template.Child()

    def __init__(self, cancel: Callable[[], object]) -> None:
        super().__init__()
        self._shown: ShownJob | None = None
        self._data: bytes | None = None
        self._pulse = 0
        self.cancel_button.connect("clicked", lambda _: cancel())
        for page in (self.empty_page, self.failure):
            page.get_first_child().set_focusable(False)  # its scrolled window: Tab would stop there
        drag = Gtk.DragSource(actions=Gdk.DragAction.COPY)
        drag.connect("prepare", self._drag_begins)
        self.image.add_controller(drag)

    def show_job(self, shown: ShownJob | None) -> None:
        """Show ``shown`` as it is now."""
        self._shown = shown
        # Not pages of a GtkStack: a screen reader would see the hidden pages too.
        self.empty_page.set_visible(shown is None)
        self.job_page.set_visible(shown is not None)
        if shown is None:
            self._stop_pulse()
            return
        self._show_image(shown)
        self.caption.set_text(shown.caption)
        self.progress_box.set_visible(shown.running)
        self.cancel_button.set_sensitive(not shown.cancelling)
        self.actions.set_visible(shown.data is not None or bool(shown.problem))
        self.file_actions.set_visible(shown.data is not None)
        if shown.running:
            self._show_progress(shown.progress)
        else:
            self._stop_pulse()

    def _show_image(self, shown: ShownJob) -> None:
        # The last preview of a stopped job would hide its result.
        data = shown.data or (shown.preview if shown.running else None)
        kept = shown.data is not None and not shown.is_image  # a video, or another file
        if kept:
            data = None
            self.failure.set_title(shown.file_name)
            self.failure.set_description(_("This file cannot be shown here. Save it to open it in another program."))
        elif data is not None:
            if data != self._data:
                decoded = texture(data)
                if decoded is not None:
                    self._data = data
                    self.image.set_paintable(decoded)
            self.image.set_alternative_text(shown.prompt)
        elif shown.problem:
            self.failure.set_title(shown.progress.text)
            self.failure.set_description(GLib.markup_escape_text(shown.problem))
        else:
            self._data = None
        failed = data is None and (kept or bool(shown.problem))
        self.image.set_visible(data is not None)
        self.failure.set_visible(failed)
        self.spinner.set_visible(data is None and not failed)
        self.spinner.set_spinning(data is None and shown.running)

    def _show_progress(self, progress: Progress) -> None:
        self.progress.set_text(progress.detail)
        self.progress.update_property([Gtk.AccessibleProperty.VALUE_TEXT], [progress.detail])
        if progress.fraction is None:
            if not self._pulse:
                self._pulse = GLib.timeout_add(PULSE_MS, self._pulse_once)
        else:
            self._stop_pulse()
            self.progress.set_fraction(min(progress.fraction, 1.0))

    def _pulse_once(self) -> bool:
        self.progress.pulse()
        return GLib.SOURCE_CONTINUE

    def _stop_pulse(self) -> None:
        if self._pulse:
            GLib.source_remove(self._pulse)
            self._pulse = 0

    def _drag_begins(self, source: Gtk.DragSource, _: float, __: float) -> Gdk.ContentProvider | None:
        shown = self._shown
        if shown is None or shown.data is None:
            return None
        source.set_icon(self.image.get_paintable(), 0, 0)
        return drag_content(shown.data, shown.mime, shown.file_name)
