"""The form: one row per field, built from the view-model."""

from __future__ import annotations

from collections.abc import Callable

from gi.repository import Adw, Gtk

from bridge.contract import MAX_SEED, ModelInfo, size_text
from overlay.translate import _
from overlay.ui.file_field import FileField
from overlay.ui.image_field import ImageField
from overlay.ui.prompt_editor import PromptEditor
from overlay.viewmodels.form import Field, FieldKind, GenerateForm
from overlay.viewmodels.prompt_history import PromptHistory
from overlay.viewmodels.sizes import size_presets


class FormView(Gtk.Box):
    """Shows a GenerateForm. The rows are created once per mode and follow the changes of the form."""

    def __init__(self, form: GenerateForm, prompts: PromptHistory) -> None:
        super().__init__(orientation=Gtk.Orientation.VERTICAL, spacing=12)
        self._form = form
        self._updates: list[Callable[[], None]] = []
        self._updating = False
        self._custom_size = False
        self._prompt: PromptEditor | None = None
        for name, schema_field in ((field.name, field) for field in self._all_fields()):
            if schema_field.kind is FieldKind.PROMPT:
                self._add_prompt(schema_field, prompts if name == "prompt" else None)
            elif schema_field.kind is FieldKind.IMAGE:
                self._add_image(schema_field)
        self._rows = Adw.PreferencesGroup()
        self.append(self._rows)
        names = [field.name for field in self._all_fields()]
        for schema_field in self._all_fields():
            self._add_row(schema_field, names)
        self._disconnect = form.changed.connect(self._update)
        self._update()

    def close(self) -> None:
        """Stop following the form."""
        self._disconnect()

    def focus_prompt(self) -> None:
        """Move the focus to the prompt."""
        if self._prompt is not None:
            self._prompt.view.grab_focus()

    def _all_fields(self) -> list[Field]:
        return [self._form.field(name) for name in self._form.names]

    def _update(self) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            for update in self._updates:
                update()
        finally:
            self._updating = False

    def _set(self, name: str, value: object) -> None:
        """Set a value that the user changed (and not `_update`)."""
        if not self._updating:
            self._form.set(name, value)

    def _visible(self, name: str) -> bool:
        return any(field.name == name for field in self._form.fields())

    # -- rows ------------------------------------------------------------------------------------------------------

    def _add_row(self, field: Field, names: list[str]) -> None:
        match field.kind:
            case FieldKind.MODEL:
                self._add_model(field)
            case FieldKind.SEED:
                self._add_seed(field)
            case FieldKind.INTEGER | FieldKind.CHOICE if field.name in ("width", "height") and "height" in names:
                if field.name == "width":
                    self._add_size()
                self._add_number(field, shown=lambda: self._custom_size)
            case FieldKind.CHOICE:
                self._add_choice(field)
            case FieldKind.INTEGER | FieldKind.NUMBER:
                self._add_number(field)
            case FieldKind.TEXT:
                self._add_text(field)
            case FieldKind.BOOLEAN:
                self._add_boolean(field)
            case FieldKind.FILE:
                picker = FileField(field.label, field.description, lambda value: self._set(field.name, value))
                self._add(picker, lambda: picker.show_value(self._form.value(field.name)))

    def _add_prompt(self, field: Field, history: PromptHistory | None) -> None:
        editor = PromptEditor(field.label, lambda text: self._set(field.name, text), history)
        box = Gtk.Box(orientation=Gtk.Orientation.VERTICAL, spacing=6)
        title = Gtk.Label(label=field.label, xalign=0)
        title.add_css_class("heading")
        box.append(title)
        box.append(editor)
        self.append(box)
        if field.name == "prompt":
            self._prompt = editor

        def update() -> None:
            box.set_visible(self._visible(field.name))
            editor.text = str(self._form.value(field.name) or "")

        self._updates.append(update)

    def _add_image(self, field: Field) -> None:
        picker = ImageField(field.label, field.description, lambda value: self._set(field.name, value))
        self.append(picker)
        self._updates.append(lambda: picker.show_value(self._form.value(field.name)))

    def _add_model(self, field: Field) -> None:
        row = Adw.ComboRow(title=field.label, use_subtitle=False)
        names: list[str] = []

        def update() -> None:
            models = self._form.models
            if names != [model.name for model in models]:
                names[:] = [model.name for model in models]
                row.set_model(Gtk.StringList.new(names))
            chosen = self._form.model
            if chosen is not None and chosen.name in names:
                row.set_selected(names.index(chosen.name))
                row.set_subtitle(model_note(chosen))
            row.set_visible(bool(names))

        row.connect("notify::selected", lambda *_: self._set(field.name, names[row.get_selected()]))
        self._add(row, update)

    def _add_size(self) -> None:
        row = Adw.ComboRow(title=_("Size"))
        sizes: list[tuple[int, int]] = []

        def update() -> None:
            presets = size_presets(self._form.model) if self._form.model else []
            if sizes != [(preset.width, preset.height) for preset in presets]:
                sizes[:] = [(preset.width, preset.height) for preset in presets]
                row.set_model(Gtk.StringList.new([*(preset.label for preset in presets), _("Other…")]))
            size = (self._form.value("width"), self._form.value("height"))
            if not {"width", "height"} & self._form.touched.keys():
                self._custom_size = False  # back to the defaults
            known = size in sizes and not self._custom_size
            self._custom_size = not known
            row.set_selected(sizes.index(size) if known else len(sizes))

        def selected(*_: object) -> None:
            if self._updating:
                return
            chosen = row.get_selected()
            self._custom_size = chosen >= len(sizes)
            if self._custom_size:  # from now on a choice, even if it equals the default
                for name in ("width", "height"):
                    self._form.touched[name] = self._form.value(name)
            else:
                width, height = sizes[chosen]
                default = self._form.field("width").default, self._form.field("height").default
                follow = (width, height) == default
                self._updating = True  # one side alone is not a size of the menu
                self._form.set("width", None if follow else width)
                self._form.set("height", None if follow else height)
                self._updating = False
            self._update()

        row.connect("notify::selected", selected)
        self._add(row, update)

    def _add_choice(self, field: Field) -> None:
        row = Adw.ComboRow(title=field.label, tooltip_text=field.description)
        choices: list[str] = []

        def update() -> None:
            now = self._form.field(field.name)
            if choices != list(now.choices):
                choices[:] = now.choices
                row.set_model(Gtk.StringList.new(choices))
            value = str(self._form.value(field.name))
            if value in choices:
                row.set_selected(choices.index(value))
            row.set_visible(self._visible(field.name))

        row.connect("notify::selected", lambda *_: self._set(field.name, choices[row.get_selected()]))
        self._add(row, update)

    def _add_number(self, field: Field, shown: Callable[[], bool] = lambda: True) -> None:
        whole = field.kind is not FieldKind.NUMBER
        spin = Gtk.SpinButton(valign=Gtk.Align.CENTER, digits=0 if whole else 2, numeric=True)
        row = Adw.ActionRow(title=field.label, tooltip_text=field.description, activatable_widget=spin)
        row.add_suffix(spin)

        def update() -> None:
            now = self._form.field(field.name)
            if now.kind is FieldKind.CHOICE:  # another model takes only certain values
                spin.set_range(min(map(float, now.choices)), max(map(float, now.choices)))
            else:
                spin.set_range(
                    now.minimum if now.minimum is not None else -1e9, now.maximum if now.maximum is not None else 1e9
                )
            spin.set_increments(now.step, now.step * 4)
            value = self._form.value(field.name)
            if value is not None:
                spin.set_value(float(value))
            problem = self._form.problem_of(field.name, value)
            row.set_subtitle(problem or "")
            row.set_visible(self._visible(field.name) and shown())

        spin.connect(
            "value-changed",
            lambda _: self._set(field.name, spin.get_value_as_int() if whole else round(spin.get_value(), 4)),
        )
        self._add(row, update)

    def _add_seed(self, field: Field) -> None:
        entry = Gtk.Entry(valign=Gtk.Align.CENTER, width_chars=6, max_width_chars=10, placeholder_text=_("random"))
        entry.set_input_purpose(Gtk.InputPurpose.DIGITS)
        dice = _icon_button("view-refresh-symbolic", _("Another seed"))
        lock = Gtk.ToggleButton(icon_name="changes-prevent-symbolic", valign=Gtk.Align.CENTER, has_frame=False)
        lock.set_tooltip_text(_("Keep this seed"))
        lock.update_property([Gtk.AccessibleProperty.LABEL], [_("Keep this seed")])
        row = Adw.ActionRow(title=field.label, tooltip_text=field.description, activatable_widget=entry)
        for widget in (entry, dice, lock):
            row.add_suffix(widget)

        def update() -> None:
            value = self._form.touched.get(field.name) if self._form.seed_locked else None
            text = "" if value is None else str(value)
            if entry.get_text() != text:
                entry.set_text(text)
            lock.set_active(self._form.seed_locked)
            problem = None if value is None else self._form.problem_of(field.name, value)
            row.set_subtitle(problem or "")

        def typed(_: Gtk.Entry) -> None:
            if self._updating:
                return
            text = entry.get_text().strip()
            self._form.seed_locked = bool(text)
            self._form.set(field.name, min(int(text), MAX_SEED) if text.isdecimal() else None)
            self._update()

        def locked(_: Gtk.ToggleButton) -> None:
            if self._updating:
                return
            if lock.get_active() and field.name not in self._form.touched:
                self._form.roll_seed()
            self._form.seed_locked = lock.get_active()
            self._update()

        entry.connect("changed", typed)
        dice.connect("clicked", lambda _: (self._form.roll_seed(), self._update()))
        lock.connect("toggled", locked)
        self._add(row, update)

    def _add_boolean(self, field: Field) -> None:
        switch = Gtk.Switch(valign=Gtk.Align.CENTER)
        row = Adw.ActionRow(title=field.label, tooltip_text=field.description, activatable_widget=switch)
        row.add_suffix(switch)
        switch.connect("notify::active", lambda *_: self._set(field.name, switch.get_active()))
        self._add(row, lambda: switch.set_active(bool(self._form.value(field.name))))

    def _add_text(self, field: Field) -> None:
        row = Adw.EntryRow(title=field.label)
        row.set_tooltip_text(field.description)

        def update() -> None:
            text = str(self._form.value(field.name) or "")
            if row.get_text() != text:
                row.set_text(text)

        row.connect("changed", lambda _: self._set(field.name, row.get_text()))
        self._add(row, update)

    def _add(self, row: Gtk.Widget, update: Callable[[], None]) -> None:
        self._rows.add(row)
        name_list_of(row, _("Settings"))
        self._updates.append(update)


def name_list_of(row: Gtk.Widget, name: str) -> None:
    """Name the list into which libadwaita has put ``row``, for screen readers."""
    rows = row.get_parent()
    if rows is not None:
        rows.update_property([Gtk.AccessibleProperty.LABEL], [name])


def model_note(model: ModelInfo) -> str:
    """What helps to choose a model: its licence, whether it is loaded, and how much it would download."""
    parts = [model.license]
    if model.loaded:
        parts.append(_("loaded"))
    elif model.status == "downloadable" and model.download_bytes:
        parts.append(_("downloads {size} on first use").format(size=size_text(model.download_bytes)))
    elif model.status == "missing":
        parts.append(model.reason or _("not available"))
    return " · ".join(parts)


def _icon_button(icon: str, label: str) -> Gtk.Button:
    button = Gtk.Button(icon_name=icon, valign=Gtk.Align.CENTER, has_frame=False, tooltip_text=label)
    button.update_property([Gtk.AccessibleProperty.LABEL], [label])
    return button
