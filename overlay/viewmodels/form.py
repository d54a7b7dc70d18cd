"""The generate form: its fields come from the JSON Schema of the mode, their defaults and limits from the model.

A field that the user has not changed follows the model. A changed field keeps its value while the model accepts it.
Fields that the model does not use (a negative prompt without real guidance) are neither shown nor sent.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bridge.contract import ModelInfo
from overlay.translate import _
from overlay.viewmodels.signal import Signal

MODEL_FIELDS = ("width", "height", "num_inference_steps", "guidance_scale")
"""Fields whose defaults and limits come from the model; the graph leaves them to it."""

LARGEST_ROLLED_SEED = 2**32 - 1
"""Short enough to read and repeat. Larger seeds can be typed."""


class FieldKind(StrEnum):
    """Which control edits a field."""

    PROMPT = "prompt"
    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    SEED = "seed"
    CHOICE = "choice"
    BOOLEAN = "boolean"
    MODEL = "model"
    IMAGE = "image"
    FILE = "file"


UPLOADS = (FieldKind.IMAGE, FieldKind.FILE)
"""Kinds that are sent but not remembered: they are content, not settings."""


@dataclass(frozen=True)
class Field:
    """One field as it is shown now."""

    name: str
    kind: FieldKind
    label: str
    description: str
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    step: float = 1
    choices: tuple[str, ...] = ()
    required: bool = False


LABELS = {
    "prompt": _("Prompt"),
    "negative_prompt": _("Negative prompt"),
    "model": _("Model"),
    "width": _("Width"),
    "height": _("Height"),
    "num_inference_steps": _("Steps"),
    "guidance_scale": _("Guidance"),
    "seed": _("Seed"),
    "num_images": _("Images"),
    "strength": _("Strength"),
    "image": _("Image"),
    "mask": _("Mask"),
}


class GenerateForm:
    """The values of one mode, for one model at a time. ``changed`` is emitted after every change."""

    def __init__(
        self,
        mode: str,
        schema: Mapping[str, Any],
        models: Sequence[ModelInfo],
        default_model: str,
        remembered: Mapping[str, Any] | None = None,
        *,
        seed_locked: bool = False,
    ) -> None:
        self.mode = mode
        self.title: str = schema.get("title") or mode
        self.description: str = schema.get("description") or ""
        self.changed = Signal[[]]()
        self.seed_locked = seed_locked
        self._schema: Mapping[str, Any] = schema["properties"]
        self._required = set(schema.get("required", ()))
        self._models = {model.name: model for model in models}
        self._service_default = default_model
        self.touched: dict[str, Any] = {}
        for name, value in (remembered or {}).items():
            if name in self._schema and self.problem_of(name, value) is None:
                self.touched[name] = value

    @property
    def names(self) -> list[str]:
        """The names of all fields, hidden ones included, in the order of the graph."""
        return list(self._schema)

    @property
    def models(self) -> list[ModelInfo]:
        """The models to choose from; empty if the mode does not let the user choose one."""
        return list(self._models.values()) if "model" in self._schema else []

    @property
    def model(self) -> ModelInfo | None:
        """The chosen model."""
        return self._models.get(self.touched.get("model") or self.default_model)

    @property
    def default_model(self) -> str:
        """The model if none is chosen: the default of the mode, else that of the service."""
        own = self._schema.get("model", {}).get("default")
        return own if own in self._models else self._service_default

    def update_models(self, models: Sequence[ModelInfo], default_model: str) -> None:
        """Take a newer list of models. A chosen model that is gone is replaced by the default."""
        self._models = {model.name: model for model in models}
        self._service_default = default_model
        if self.touched.get("model") not in (None, *self._models):
            del self.touched["model"]
        self._drop_what_does_not_fit()
        self.changed.emit()

    def fields(self) -> list[Field]:
        """The fields to show, in the order of the graph."""
        shown = [self.field(name) for name in self._schema]
        return [field for field in shown if not self._hidden(field.name)]

    def field(self, name: str) -> Field:
        """One field, with the limits of the chosen model."""
        schema = self._schema[name]
        limits = self._limits(name)
        minimum = limits.get("min", schema.get("minimum"))
        maximum = limits.get("max", schema.get("maximum"))
        choices = limits.get("choices") or schema.get("enum") or ()
        kind = self._kind(name, schema)
        return Field(
            name=name,
            kind=kind,
            label=LABELS.get(name) or name.replace("_", " ").capitalize(),
            description=schema.get("description") or "",
            default=self._default(name, schema),
            minimum=minimum,
            maximum=maximum,
            step=limits.get("multiple_of") or schema.get("multipleOf") or (1 if kind is not FieldKind.NUMBER else 0.1),
            choices=tuple(str(choice) for choice in choices if choice is not None),  # null: the default of the graph
            required=name in self._required,
        )

    @property
    def prompt(self) -> str:
        """The prompt; empty in a mode that takes none."""
        return str(self.value("prompt") or "") if "prompt" in self._schema else ""

    @property
    def needs_only_a_prompt(self) -> bool:
        """Whether only the prompt can be missing: false if an image or a file must be chosen first."""
        return "prompt" in self._schema and not self.problems().keys() - {"prompt"}

    def value(self, name: str) -> Any:
        """The value of a field: what the user entered, else its default."""
        if name == "model":
            return self.model.name if self.model else self.default_model
        return self.touched[name] if name in self.touched else self.field(name).default

    def set(self, name: str, value: Any) -> str | None:
        """Set a field and return what is wrong with the value. It is kept anyway: the user may still be typing."""
        before = self.value(name)
        if isinstance(value, str) and type_of(self._schema[name]) == "integer" and value.isdecimal():
            value = int(value)  # a menu holds texts
        if value is None or (value == "" and name != "prompt"):
            self.touched.pop(name, None)
        else:
            self.touched[name] = value
        if name == "model" and value != before:
            self._drop_what_does_not_fit()
        if value != before:
            self.changed.emit()
        return self.problem_of(name, self.value(name))

    def reset(self) -> None:
        """Reset every field but the prompt and the model to its default."""
        kept = {name: self.touched[name] for name in ("prompt", "model") if name in self.touched}
        self.touched.clear()
        self.touched.update(kept)
        self.changed.emit()

    def roll_seed(self) -> int:
        """Choose a random seed and lock it, so that it is visible and used again."""
        seed = random.randint(0, LARGEST_ROLLED_SEED)  # noqa: S311 - a seed is no secret
        self.seed_locked = True
        self.set("seed", seed)
        return seed

    def problems(self) -> dict[str, str]:
        """The problems that keep the form from being sent, by field."""
        found = {field.name: self.problem_of(field.name, self.value(field.name)) for field in self.fields()}
        return {name: problem for name, problem in found.items() if problem}

    def problem_of(self, name: str, value: Any) -> str | None:
        """What is wrong with ``value`` and what would be right, as a sentence; None if nothing is."""
        field = self.field(name)
        if field.kind in (FieldKind.PROMPT, *UPLOADS) and not str(value or "").strip():
            return _("{field} is empty").format(field=field.label) if field.required or name == "prompt" else None
        if field.kind in (FieldKind.INTEGER, FieldKind.NUMBER, FieldKind.SEED) and value is not None:
            return number_problem(field, value)
        if field.kind is FieldKind.MODEL and value not in self._models:
            return _("There is no model named {name}").format(name=value)
        if field.kind is FieldKind.CHOICE and value and field.choices and str(value) not in field.choices:
            return _("{field} must be one of {choices}").format(field=field.label, choices=", ".join(field.choices))
        return None

    def request(self) -> dict[str, Any]:
        """The body of the request: what the user chose. The service fills in the rest."""
        body = {field.name: self.touched[field.name] for field in self.fields() if field.name in self.touched}
        if not self.seed_locked:
            body.pop("seed", None)
        if "prompt" in self._schema:
            body["prompt"] = self.value("prompt")
        body["mode"] = self.mode
        return body

    def to_remember(self) -> dict[str, Any]:
        """The settings that the next start shows again. Images and prompts are not settings."""
        return {
            name: value
            for name, value in self.touched.items()
            if name in self._schema and name != "prompt" and self._kind(name, self._schema[name]) not in UPLOADS
        }

    def use(self, parameters: Mapping[str, Any], model: str | None) -> None:
        """Take the settings of an earlier image. What this mode does not know or does not accept is left out."""
        given = {**parameters, **({"model": model} if model in self._models else {})}
        self.touched.clear()
        if "model" in given and "model" in self._schema:
            self.touched["model"] = given.pop("model")
        for name, value in given.items():
            if name in self._schema and value is not None and self.problem_of(name, value) is None:
                self.touched[name] = value
        self.seed_locked = "seed" in self.touched
        self.changed.emit()

    def _hidden(self, name: str) -> bool:
        return name == "negative_prompt" and self.model is not None and not self.model.limits.negative_prompt

    def _kind(self, name: str, schema: Mapping[str, Any]) -> FieldKind:
        if name in ("prompt", "negative_prompt"):
            return FieldKind.PROMPT
        if name == "model":
            return FieldKind.MODEL
        if name == "seed":
            return FieldKind.SEED
        if schema.get("format") in UPLOADS:
            return FieldKind(schema["format"])
        if schema.get("enum") or self._limits(name).get("choices"):
            return FieldKind.CHOICE
        kinds = {"integer": FieldKind.INTEGER, "number": FieldKind.NUMBER, "boolean": FieldKind.BOOLEAN}
        return kinds.get(type_of(schema), FieldKind.TEXT)

    def _limits(self, name: str) -> dict[str, Any]:
        if self.model is None or name not in (*MODEL_FIELDS, "num_images"):
            return {}
        return getattr(self.model.limits, name).model_dump(exclude_none=True)

    def _default(self, name: str, schema: Mapping[str, Any]) -> Any:
        if name in MODEL_FIELDS and self.model is not None:
            return getattr(self.model.defaults, name)
        if name == "prompt":
            return ""
        return schema.get("default")

    def _drop_what_does_not_fit(self) -> None:
        for name in (*MODEL_FIELDS, "num_images"):
            if name in self.touched and self.problem_of(name, self.touched[name]):
                del self.touched[name]


def type_of(schema: Mapping[str, Any]) -> str:
    """The type of a property: ``integer`` for ``["integer", "null"]`` too."""
    said = schema.get("type", "string")
    return said if isinstance(said, str) else next((name for name in said if name != "null"), "string")


def number_problem(field: Field, value: Any) -> str | None:
    """What is wrong with a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _("{field} {value} is not a number").format(field=field.label, value=value)
    bounds = {"field": field.label, "value": f"{value:g}", "min": field.minimum, "max": field.maximum}
    if field.minimum is not None and value < field.minimum:
        return _("{field} {value} is below {min:g}").format(**bounds)
    if field.maximum is not None and value > field.maximum:
        return _("{field} {value} is above {max:g}").format(**bounds)
    if field.kind is FieldKind.INTEGER and field.step > 1 and value % field.step:
        lower = int(value - value % field.step)
        return _("{field} {value} is not a multiple of {step:g}; nearest are {lower} and {upper}").format(
            **bounds, step=field.step, lower=lower, upper=lower + int(field.step)
        )
    return None
