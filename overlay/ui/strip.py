"""The strip under the large view: running jobs with their progress first, then past pictures, newest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gi.repository import Gtk

from overlay.translate import _
from overlay.ui.pictures import texture
from overlay.viewmodels.history import PastPicture
from overlay.viewmodels.job_card import JobCard

SIDE = 88


class StripItem(Gtk.ToggleButton):
    """One thumbnail. ``key`` names its picture as the history does."""

    def __init__(self, key: str, label: str) -> None:
        super().__init__(has_frame=False, tooltip_text=label)
        self.key = key
        self.add_css_class("strip-item")
        self.update_property([Gtk.AccessibleProperty.LABEL], [label])
        self.picture = Gtk.Picture(width_request=SIDE, height_request=SIDE, can_shrink=True)
        self.bar = Gtk.ProgressBar(visible=False)
        box = Gtk.Box(orientation=Gtk.Orientation.VERTICAL, spacing=3)
        box.append(self.picture)
        box.append(self.bar)
        self.set_child(box)
        self._data: bytes | None = None

    def show_picture(self, data: bytes | None) -> None:
        """Show a preview or a picture."""
        if data is not None and data != self._data:
            self._data = data
            self.picture.set_paintable(texture(data))

    def follow(self, card: JobCard) -> None:
        """Show how far ``card`` is."""
        self.show_picture(card.images[0] if card.images else card.preview)
        self.bar.set_visible(card.running)
        if card.progress.fraction is None:
            self.bar.pulse()
        else:
            self.bar.set_fraction(card.progress.fraction)


class Strip(Gtk.ScrolledWindow):
    """``chosen`` is called with the key of a clicked item; ``fetch`` gets a past picture's data."""

    def __init__(
        self,
        chosen: Callable[[str], object],
        fetch: Callable[[PastPicture, Callable[[bytes], object]], object],
    ) -> None:
        super().__init__(vscrollbar_policy="never", hexpand=True, min_content_height=SIDE + 30)
        self._chosen = chosen
        self._fetch = fetch
        self._items: dict[str, StripItem] = {}
        self._box = Gtk.Box(spacing=4, margin_top=6, margin_bottom=6, margin_start=8, margin_end=8)
        self._box.update_property([Gtk.AccessibleProperty.LABEL], [_("Pictures")])
        self.set_child(self._box)

    def show(self, cards: Sequence[JobCard], past: Sequence[PastPicture], selected: str | None) -> None:
        """Show these, in this order. What is shown already is kept, thumbnail and all."""
        wanted: dict[str, tuple[str, JobCard | PastPicture]] = {}
        for card in reversed(cards):
            wanted[f"{card.job_id}/0"] = (card.prompt, card)
        for picture in past:
            wanted.setdefault(picture.key, (picture.prompt, picture))
        for key in [key for key in self._items if key not in wanted]:
            self._box.remove(self._items.pop(key))
        before: StripItem | None = None
        for key, (label, source) in wanted.items():
            item = self._items.get(key) or self._make(key, label, source)
            self._box.reorder_child_after(item, before)
            if isinstance(source, JobCard):
                item.follow(source)
            else:
                item.bar.set_visible(False)
            before = item
        self.mark(selected)

    def follow(self, card: JobCard) -> None:
        """Show a card's progress."""
        item = self._items.get(f"{card.job_id}/0")
        if item is not None:
            item.follow(card)

    def mark(self, selected: str | None) -> None:
        """Show which item the large view shows."""
        for key, item in self._items.items():
            item.set_active(key == selected)

    def _make(self, key: str, label: str, source: JobCard | PastPicture) -> StripItem:
        item = StripItem(key, label)
        item.connect("clicked", lambda _: self._chosen(key))
        self._items[key] = item
        self._box.append(item)
        if isinstance(source, PastPicture):
            self._fetch(source, item.show_picture)
        return item
