"""The limits of models and of the service in the JSON Schema of a mode: what fits the schema is accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bridge.contract import IntegerLimit, ModelInfoResponse, ModelLimits

SIDES = ("width", "height")
COUNTED = (*SIDES, "num_inference_steps", "num_images")


class Most(NamedTuple):
    """The most that a request may ask for, whatever its model."""

    pixels: int
    steps: int
    images: int
    callbacks: bool = True
    """Whether webhooks are sent."""


def limit_schema(schema: dict[str, Any], models: ModelInfoResponse | None, default: str | None, most: Most) -> None:
    """Add to the schema of a request what the service enforces: its own limits and those of each model.

    `default`: the model of requests that name none; None: the mode takes no model.
    """
    properties = schema["properties"]
    for name, bound in (("num_inference_steps", most.steps), ("num_images", most.images)):
        _lower(properties, name, bound)
    for name, other in zip(SIDES, reversed(SIDES), strict=True):
        _lower(properties, name, most.pixels // max(1, properties.get(other, {}).get("minimum", 1)))
    if not most.callbacks:
        properties["callback_url"] = {"type": "null", "description": "Webhooks are off (IMAGEGEN_WEBHOOK_SECRET)."}
    if models is None or default is None or "model" not in properties:
        return
    known = [model.name for model in models.models]
    properties["model"] = {**properties["model"], "enum": [*known, None]}
    variants = [
        {
            "properties": {
                "model": {"enum": [*names, *([None] if default in names else [])]},
                **_bounds(limits, properties),
            }
        }
        for names, limits in _grouped(models)
    ]
    if len(variants) == 1:
        for name, bounds in variants[0]["properties"].items():
            properties[name] = {**properties[name], **bounds}
    else:
        schema["anyOf"] = variants
        for name in (*COUNTED, "guidance_scale"):
            if name in properties:
                properties[name] = {**properties[name], **_loosest([each["properties"][name] for each in variants])}


def _lower(properties: dict[str, Any], name: str, bound: int) -> None:
    if name in properties and bound < properties[name].get("maximum", bound + 1):
        properties[name] = {**properties[name], "maximum": bound}


def _grouped(models: ModelInfoResponse) -> list[tuple[Sequence[str], ModelLimits]]:
    """The models, those with the same limits together."""
    groups: dict[str, tuple[list[str], ModelLimits]] = {}
    for model in models.models:
        groups.setdefault(model.limits.model_dump_json(), ([], model.limits))[0].append(model.name)
    return list(groups.values())


def _bounds(limits: ModelLimits, properties: Mapping[str, Any]) -> dict[str, Any]:
    bounds: dict[str, Any] = {name: _integer(getattr(limits, name)) for name in COUNTED}
    bounds["guidance_scale"] = {"minimum": limits.guidance_scale.min, "maximum": limits.guidance_scale.max}
    return {name: _within(each, properties[name]) for name, each in bounds.items() if name in properties}


def _loosest(bounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What holds for every model: forms and examples are made from it, as few programs look at variants."""
    values = [[value for value in each.get("enum", ()) if value is not None] for each in bounds]
    pairs = list(zip(bounds, values, strict=True))
    return {
        "minimum": min(each["minimum"] if "minimum" in each else min(own) for each, own in pairs),
        "maximum": max(each["maximum"] if "maximum" in each else max(own) for each, own in pairs),
    }


def _integer(limit: IntegerLimit) -> dict[str, Any]:
    if limit.choices:
        return {"enum": [*limit.choices, None]}
    multiple = {"multipleOf": limit.multiple_of} if limit.multiple_of > 1 else {}
    return {"minimum": limit.min, "maximum": limit.max, **multiple}


def _within(bounds: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The tighter of two bounds on each side."""
    for name, choose in (("minimum", max), ("maximum", min)):
        if name in bounds and name in own:
            bounds[name] = choose(bounds[name], own[name])
    return bounds
