"""A multi-line prompt. Up on the first line and Down on the last line recall earlier prompts."""

from __future__ import annotations

from collections.abc import Callable

from gi.repository import Gdk, Gtk

from overlay.viewmodels.prompt_history import PromptHistory

HEIGHT = 96


class PromptView(Gtk.TextView):
    """``composing`` is true while an input method (Chinese, Japanese, accents) is in use; Escape then belongs to it."""

    def __init__(self, **properties: object) -> None:
        super().__init__(**properties)
        self.composing = False
        self.connect("preedit-changed", self._composes)

    def _composes(self, _: object, text: str) -> None:
        self.composing = bool(text)


class PromptEditor(Gtk.Frame):
    """``changed`` is called with the text after every keystroke."""

    def __init__(self, label: str, changed: Callable[[str], object], history: PromptHistory | None = None) -> None:
        super().__init__()
        self.add_css_class("prompt-frame")
        self._history = history
        self.view = PromptView(
            wrap_mode=Gtk.WrapMode.WORD_CHAR,
            accepts_tab=False,
            top_margin=8,
            bottom_margin=8,
            left_margin=8,
            right_margin=8,
        )
        self.view.update_property([Gtk.AccessibleProperty.LABEL], [label])
        self._buffer = self.view.get_buffer()
        self._buffer.connect("changed", lambda _: changed(self.text))
        scrolled = Gtk.ScrolledWindow(
            child=self.view,
            min_content_height=HEIGHT if history else HEIGHT // 2,
            hscrollbar_policy="never",
            focusable=False,
        )
        self.set_child(scrolled)
        if history is not None:
            keys = Gtk.EventControllerKey()
            keys.connect("key-pressed", self._key_pressed)
            self.view.add_controller(keys)

    @property
    def text(self) -> str:
        """The text."""
        return self._buffer.get_text(
            self._buffer.get_start_iter(), self._buffer.get_end_iter(), include_hidden_chars=False
        )

    @text.setter
    def text(self, text: str) -> None:
        if text != self.text:
            self._buffer.set_text(text)

    def _key_pressed(self, _: object, key: int, __: int, state: Gdk.ModifierType) -> bool:
        if self._history is None or state & (Gdk.ModifierType.CONTROL_MASK | Gdk.ModifierType.SHIFT_MASK):
            return False
        if key == Gdk.KEY_Up and self._on_edge(first=True):
            return self._show(self._history.older(self.text))
        if key == Gdk.KEY_Down and self._on_edge(first=False):
            return self._show(self._history.newer())
        return False

    def _show(self, prompt: str | None) -> bool:
        if prompt is not None:
            self.text = prompt
        return prompt is not None

    def _on_edge(self, *, first: bool) -> bool:
        """Whether the cursor is on the first (or last) displayed line: a long line wraps into several."""
        cursor = self._buffer.get_iter_at_mark(self._buffer.get_insert())
        if first:
            return not self.view.backward_display_line(cursor.copy())
        return not self.view.forward_display_line(cursor.copy())
