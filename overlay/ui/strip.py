"""The strip below the large view: running jobs with their progress, then past images, newest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gi.repository import GLib, Gtk

from overlay.translate import _
from overlay.ui.images import thumbnail
from overlay.viewmodels.history import PastImage
from overlay.viewmodels.job_card import JobCard

SIDE = 88
BAR_HEIGHT = 4


class StripItem(Gtk.Overlay):
    """One thumbnail. ``key`` identifies its image, as in the history. A running job has a Cancel button."""

    def __init__(self, key: str, label: str, chosen: Callable[[str], object], cancel: Callable[[str], object]) -> None:
        super().__init__(valign=Gtk.Align.START)
        self.key = key
        self.wanted: PastImage | None = None
        """The past image to fetch once this item comes into view."""
        self.button = Gtk.ToggleButton(has_frame=False, tooltip_text=label)
        self.button.add_css_class("strip-item")
        self.button.update_property([Gtk.AccessibleProperty.LABEL], [label])
        self.button.connect("clicked", lambda _: chosen(key))
        self.image = Gtk.Picture(width_request=SIDE, height_request=SIDE, can_shrink=True)
        self.bar = Gtk.ProgressBar(visible=False)
        # A progress bar requests 150 pixels; inside a scrolled window it takes the width of the image.
        narrow = Gtk.ScrolledWindow(
            child=self.bar,
            hscrollbar_policy="external",
            vscrollbar_policy="never",
            propagate_natural_width=False,
            can_focus=False,  # otherwise Tab would stop at the scrolled window
            focusable=False,
        )
        narrow.set_size_request(SIDE, BAR_HEIGHT)  # also without the bar: the strip keeps its height when a job ends
        box = Gtk.Box(orientation=Gtk.Orientation.VERTICAL, spacing=3)
        box.append(self.image)
        box.append(narrow)
        self.button.set_child(box)
        self.set_child(self.button)
        name = _("Cancel {prompt}").format(prompt=label)
        self.cancel_button = Gtk.Button(
            icon_name="window-close-symbolic",
            halign=Gtk.Align.END,
            valign=Gtk.Align.START,
            visible=False,
            tooltip_text=name,
        )
        for style in ("circular", "osd", "strip-cancel"):
            self.cancel_button.add_css_class(style)
        self.cancel_button.update_property([Gtk.AccessibleProperty.LABEL], [name])
        self.cancel_button.connect("clicked", lambda _: cancel(key))
        self.add_overlay(self.cancel_button)
        self._data: bytes | None = None
        theme = Gtk.IconTheme.get_for_display(self.get_display())
        self._broken = theme.lookup_icon(
            "dialog-warning-symbolic", None, SIDE // 3, 1, Gtk.TextDirection.NONE, Gtk.IconLookupFlags.FORCE_SYMBOLIC
        )

    def show_image(self, data: bytes | None) -> None:
        """Show a preview or an image."""
        if data is not None and data != self._data:
            self._data = data
            self.image.set_paintable(thumbnail(data, SIDE * self.get_scale_factor()))

    def follow(self, card: JobCard, index: int) -> None:
        """Show the progress of ``card``; ``index`` is the image that this item stands for."""
        if card.running or card.images:
            self.show_image(card.images[index] if index < len(card.images) else card.preview)
        if not card.running and not card.done and self.image.get_paintable() is not self._broken:
            self._data = None
            self.image.set_paintable(self._broken)
        self.bar.set_visible(card.running)
        self.cancel_button.set_visible(card.running)
        self.cancel_button.set_sensitive(not card.cancelling)
        if card.progress.fraction is None:
            self.bar.pulse()
        else:
            self.bar.set_fraction(card.progress.fraction)

    def rest(self) -> None:
        """Show a past image, without progress."""
        self.bar.set_visible(False)
        self.cancel_button.set_visible(False)


class Strip(Gtk.ScrolledWindow):
    """``chosen`` and ``cancel`` are called with the key of an item; ``fetch`` gets the data of a past image."""

    def __init__(
        self,
        chosen: Callable[[str], object],
        cancel: Callable[[str], object],
        fetch: Callable[[PastImage, Callable[[bytes], object]], object],
    ) -> None:
        super().__init__(vscrollbar_policy="never", hexpand=True, min_content_height=SIDE + 30, focusable=False)
        self._chosen = chosen
        self._cancel = cancel
        self._fetch = fetch
        self._items: dict[str, StripItem] = {}
        self._fetch_scheduled = False
        self._box = Gtk.Box(spacing=4, margin_top=6, margin_bottom=6, margin_start=8, margin_end=8)
        self._box.update_property([Gtk.AccessibleProperty.LABEL], [_("Images")])
        self.set_child(self._box)
        for signal in ("value-changed", "changed"):
            self.get_hadjustment().connect(signal, lambda _: self._schedule_fetch())

    def show(self, cards: Sequence[JobCard], past: Sequence[PastImage], selected: str | None) -> None:
        """Show these items in this order. Existing items keep their thumbnails."""
        wanted: dict[str, tuple[str, JobCard | PastImage]] = {}
        shown_past = {image.key for image in past}
        for card in reversed(cards):
            for index in range(max(1, len(card.images))):
                key = f"{card.job_id}/{index}"
                if not card.images or key in shown_past:  # a removed image of a batch stays hidden
                    wanted[key] = (card.prompt, card)
        for image in past:
            wanted.setdefault(image.key, (image.prompt, image))
        for key in [key for key in self._items if key not in wanted]:
            self._box.remove(self._items.pop(key))
        before: StripItem | None = None
        for key, (label, source) in wanted.items():
            item = self._items.get(key) or self._make(key, label, source)
            self._box.reorder_child_after(item, before)
            if isinstance(source, JobCard):
                item.follow(source, _index(key))
            else:
                item.rest()
            before = item
        self.mark(selected)
        self._schedule_fetch()

    def follow(self, card: JobCard) -> None:
        """Show the progress of a card."""
        for key, item in self._items.items():
            if key.startswith(card.job_id):
                item.follow(card, _index(key))

    def mark(self, selected: str | None) -> None:
        """Mark the item that the large view shows."""
        for key, item in self._items.items():
            item.button.set_active(key == selected)

    def _make(self, key: str, label: str, source: JobCard | PastImage) -> StripItem:
        item = StripItem(key, label, self._chosen, self._cancel)
        self._items[key] = item
        self._box.append(item)
        if isinstance(source, PastImage):
            item.wanted = source
        return item

    def _schedule_fetch(self) -> None:
        """Fetch what is in view once GTK has placed the items, once for all changes until then."""
        if not self._fetch_scheduled:
            self._fetch_scheduled = True
            GLib.idle_add(self._fetch_visible)

    def _fetch_visible(self) -> bool:
        self._fetch_scheduled = False
        adjustment = self.get_hadjustment()
        left, right = adjustment.get_value(), adjustment.get_value() + adjustment.get_page_size()
        for item in self._items.values():
            if item.wanted is None or not item.get_width():
                continue
            placed, bounds = item.compute_bounds(self._box)
            if placed and bounds.get_x() + bounds.get_width() >= left and bounds.get_x() <= right:
                image, item.wanted = item.wanted, None
                self._fetch(image, item.show_image)
        return GLib.SOURCE_REMOVE


def _index(key: str) -> int:
    """The index of the image within its job."""
    return int(key.rpartition("/")[2])
