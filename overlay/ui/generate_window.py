"""The generate window: the form on the left, the selected image on the right, all images below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gi.repository import Adw, Gdk, Gtk

from bridge.contract import DEFAULT_MODE
from overlay.translate import _
from overlay.ui.banner import Banner
from overlay.ui.fields import FormView, name_list_of
from overlay.ui.files import UI_FOLDER
from overlay.ui.host import WindowHost
from overlay.ui.image_actions import ImageActions, add_action
from overlay.ui.prompt_editor import PromptView
from overlay.ui.stage import Stage
from overlay.ui.strip import Strip
from overlay.viewmodels.history import PastImage
from overlay.viewmodels.job_card import JobCard
from overlay.viewmodels.session import Session
from overlay.viewmodels.shown_job import ShownJob, from_card, from_past

BUTTON_S = 10
"""How long a message with a button is shown: who reaches it by keys needs longer than the usual 5 seconds."""
KEPT_IMAGES = 32
"""Encoded images of the history in memory. Others are fetched again when they are shown."""


@Gtk.Template(filename=str(UI_FOLDER / "generate_window.ui"))
class GenerateWindow(Adw.ApplicationWindow):
    """Follows the session. Its only state of its own is which image is selected."""

    __gtype_name__ = "NeuroLuxGenerateWindow"
    toasts: Adw.ToastOverlay = Gtk.Template.Child()
    banner: Banner = Gtk.Template.Child()
    form_box: Gtk.Box = Gtk.Template.Child()
    stage_box: Gtk.Box = Gtk.Template.Child()
    strip_box: Gtk.Box = Gtk.Template.Child()

    def __init__(self, host: WindowHost, session: Session) -> None:
        super().__init__()
        self.session = session
        self._host = host
        self._form_view: FormView | None = None
        self._selected: str | None = None
        self._start_when_ready = False
        self._wanted_prompt: str | None = None
        self._fetched: dict[str, bytes] = {}
        self._unfetched: dict[str, str] = {}
        """Why an image could not be fetched. Selecting it tries again."""
        self.stage = Stage(self._cancel)
        self.stage_box.append(self.stage)
        self.strip = Strip(self._choose, self._cancel_job, self._fetch)
        self.strip_box.append(self.strip)
        if session.preferences.dialog_size:
            self.set_default_size(*session.preferences.dialog_size)
        self.connect("notify::visible", lambda *_: self._remember_size())
        # Before the prompt gets the key: a text view takes Escape, and Ctrl+C even if no text is selected.
        first = Gtk.EventControllerKey(propagation_phase=Gtk.PropagationPhase.CAPTURE)
        first.connect("key-pressed", self._escape_pressed)
        first.connect("key-pressed", self._copy_pressed)
        self.add_controller(first)
        self._actions = ImageActions(self, session, self.shown, self._choose, self.toast)
        add_action(self, "generate", self.generate)
        add_action(self, "reset", lambda: session.form and session.form.reset())
        session.form_replaced.connect(self._show_form)
        session.card_added.connect(self._card_added)
        session.history.changed.connect(self._show_strip)
        for card in session.cards:
            card.changed.connect(lambda card=card: self._card_changed(card))
        self.banner.follow(session.connection)
        self._show_form()
        self._show_strip()

    # -- public --------------------------------------------------------------------------------------------------

    def reveal(self, prompt: str | None, *, start: bool = False) -> None:
        """Come to the front with ``prompt`` in the form; ``start`` generates as soon as the service is ready."""
        self._wanted_prompt = prompt if prompt is not None else self._wanted_prompt
        self._start_when_ready = start
        self._apply_requested()
        if self.session.connection.ready:
            self.session.refresh()  # other programs generate images too
        self.present()
        if self._form_view is not None:
            self._form_view.focus_prompt()

    def select(self, job_id: str) -> None:
        """Show the first image of a job."""
        self._choose(f"{job_id}/0")

    def save_job(self, job_id: str) -> None:
        """Save the first image of a job, for its notification, which may be older than this process."""
        for card in self.session.cards:
            if card.job_id == job_id and card.images:
                self._actions.save_shown(from_card(card, self.session.settings_of(card)))
                return

        def fetched(image: PastImage, data: bytes) -> None:
            settings = self.session.settings_of(JobCard.of(image.job))
            self._actions.save_shown(from_past(image, data, settings))

        def failed(reason: str) -> None:
            self.toast(_("The image could not be saved: {reason}").format(reason=reason))

        self.session.fetch_first(job_id, fetched, failed)

    def shown(self) -> ShownJob | None:
        """The image in the large view."""
        if self._selected is None:
            return None
        job_id, _slash, index = self._selected.partition("/")
        for card in self.session.cards:
            if card.job_id == job_id:
                return from_card(card, self.session.settings_of(card), int(index))
        for image in self.session.history.images():
            if image.key == self._selected:
                settings = self.session.settings_of(JobCard.of(image.job))
                problem = self._unfetched.get(image.key, "")
                return from_past(image, self._fetched.get(image.key), settings, problem)
        return None

    def toast(self, text: str, button: str = "", pressed: Callable[[], object] | None = None) -> None:
        """Show a message that disappears by itself. While the window is hidden, the desktop shows it."""
        if not self.is_visible():
            self._host.notify_hidden(text)
            return
        toast = Adw.Toast(title=text)
        if pressed is not None:
            toast.set_timeout(BUTTON_S)
            toast.set_button_label(button)
            toast.connect("button-clicked", lambda _: pressed())
        self.toasts.add_toast(toast)

    def generate(self) -> None:
        """Send the form, or report its first problem."""
        form = self.session.form
        if form is None:
            self.toast(self.session.connection.banner or _("The image service is not ready yet"))
            return
        problems = form.problems()
        if problems:
            self.toast(next(iter(problems.values())))
            return
        self.session.generate()

    # -- following the session -----------------------------------------------------------------------------------

    def _show_form(self) -> None:
        if self._form_view is not None:
            self._form_view.close()
        while (child := self.form_box.get_first_child()) is not None:
            self.form_box.remove(child)
        form = self.session.form
        if form is None:
            return
        if len(self.session.modes) > 1:
            self.form_box.append(self._mode_row(form.mode))
        self._form_view = FormView(form, self.session.prompts)
        self.form_box.append(self._form_view)
        self._apply_requested()

    def _mode_row(self, chosen: str) -> Gtk.Widget:
        modes = self.session.modes
        row = Adw.ComboRow(title=_("Mode"), model=Gtk.StringList.new([self.session.title_of(mode) for mode in modes]))
        row.set_selected(modes.index(chosen))
        row.connect("notify::selected", lambda *_: self.session.choose_mode(modes[row.get_selected()]))
        group = Adw.PreferencesGroup()
        group.add(row)
        name_list_of(row, _("Mode"))
        return group

    def _apply_requested(self) -> None:
        form = self.session.form
        if form is None:
            return
        other = form.mode != DEFAULT_MODE and DEFAULT_MODE in self.session.modes
        if self._wanted_prompt is not None and other and not form.needs_only_a_prompt:
            self.session.choose_mode(DEFAULT_MODE)  # this mode needs more than a prompt; the new form calls this again
            form = self.session.form or form
        if self._wanted_prompt is not None and "prompt" in form.names:
            form.set("prompt", self._wanted_prompt)
            self._wanted_prompt = None
        if self._start_when_ready:
            self._start_when_ready = False
            self.generate()

    def _card_added(self, card: JobCard) -> None:
        card.changed.connect(lambda: self._card_changed(card))
        self._selected = f"{card.job_id}/0"
        self._show_strip()
        self._show_stage()

    def _card_changed(self, card: JobCard) -> None:
        self.strip.follow(card)
        if card.images:  # each further image gets its own item
            self._show_strip()
        if self._selected and self._selected.startswith(card.job_id):
            self._show_stage()

    def _show_strip(self) -> None:
        past = self.session.history.images()
        if self._selected is not None and self.shown() is None:
            self._selected = None  # it was removed
        if self._selected is None and (self.session.cards or past):
            self._selected = f"{self.session.cards[-1].job_id}/0" if self.session.cards else past[0].key
        self.strip.show(self.session.cards, past, self._selected)
        self._show_stage()

    def _show_stage(self) -> None:
        shown = self.shown()
        if shown is not None and shown.data is None and not shown.problem:
            self._fetch_selected()
        self.stage.show_job(shown)
        self._actions.update(shown)
        self.stage.vary_button.set_visible(self._actions.can_vary)

    def _remember_size(self) -> None:
        """Save the size when the window is hidden. A maximised window has the size of the screen, not a chosen one."""
        if not self.get_visible() and not self.is_maximized():
            width, height = self.get_default_size()
            if width > 0 and height > 0:
                self.session.preferences.dialog_size = (width, height)
                self.session.remember()

    def _choose(self, key: str) -> None:
        self._selected = key
        self._unfetched.pop(key, None)
        self.strip.mark(key)
        self._show_stage()

    def _fetch(self, image: PastImage, done: Callable[[bytes], object]) -> None:
        def fetched(data: bytes) -> None:
            self._fetched[image.key] = data
            while len(self._fetched) > KEPT_IMAGES:
                del self._fetched[next(iter(self._fetched))]
            done(data)
            if image.key == self._selected:
                self._show_stage()

        def failed(reason: str) -> None:
            self._unfetched[image.key] = reason
            if image.key == self._selected:
                self._show_stage()

        self.session.fetch_image(image.job.job_id, image.index, fetched, failed)

    def _fetch_selected(self) -> None:
        for image in self.session.history.images():
            if image.key == self._selected and image.key not in self._fetched:
                self._fetch(image, lambda _: None)

    def _cancel(self) -> None:
        if self._selected:
            self._cancel_job(self._selected)

    def _cancel_job(self, key: str) -> None:
        for card in self.session.cards:
            if key.startswith(card.job_id) and card.running:
                self.session.cancel(card)

    # -- keys ------------------------------------------------------------------------------------------------------

    def _escape_pressed(self, _: object, key: int, *__: object) -> bool:
        focus = self.get_focus()
        if key != Gdk.KEY_Escape or (focus is not None and focus.get_native() != self):  # an open menu takes the key
            return False
        if isinstance(focus, PromptView) and focus.composing:
            return False
        self.close()
        return True

    def _copy_pressed(self, _: object, key: int, __: int, state: Gdk.ModifierType) -> bool:
        if key == Gdk.KEY_c and state & Gdk.ModifierType.CONTROL_MASK and not text_is_selected(self.get_focus()):
            self._actions.copy()
            return True
        return False


def text_is_selected(focus: Any) -> bool:
    """Whether the focused widget has selected text, which Ctrl+C then copies."""
    if isinstance(focus, Gtk.TextView):
        return focus.get_buffer().get_has_selection()
    if isinstance(focus, (Gtk.Editable, Gtk.Label)):
        bounds = focus.get_selection_bounds()  # empty, or beginning with False, without a selection
        return bool(bounds) and bounds[0] is not False
    return False
