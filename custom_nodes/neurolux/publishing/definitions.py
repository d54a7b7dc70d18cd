"""What a node's definition says about one of its inputs, as ``INPUT_TYPES`` and ``/object_info`` give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Definition = Mapping[str, Any]
"""What ``INPUT_TYPES`` of a node class returns."""
Spec = Sequence[Any]
"""Type and options of an input."""


def options_of(spec: Any) -> Mapping[str, Any]:
    """What a specification says beside the type: limits, a tooltip, the options of a list."""
    return spec[1] if isinstance(spec, list | tuple) and len(spec) > 1 and isinstance(spec[1], Mapping) else {}


def choices_of(spec: Any) -> Sequence[Any]:
    """What a list offers, in either form of a specification; empty if it is none."""
    if isinstance(spec, list | tuple) and spec and isinstance(spec[0], list):
        return spec[0]
    return options_of(spec).get("options") or []


def spec_of(definition: Definition | None, name: str, values: Mapping[str, Any]) -> Spec | None:
    """The specification of the input ``name``; None if the definition has no such input.

    A dynamic combo decides by its value which inputs there are beside it: ``model.resolution`` is the input
    ``resolution`` of what ``model`` is set to.

    :param values: The node's inputs in API format.
    """
    for section in ("required", "optional"):
        found = (definition or {}).get(section, {}).get(name)
        if isinstance(found, list | tuple) and found:
            return found
    outer, dot, inner = name.rpartition(".")
    owner = spec_of(definition, outer, values) if dot else None
    options = owner[1].get("options") if owner and len(owner) > 1 and isinstance(owner[1], Mapping) else None
    for option in options if isinstance(options, list | tuple) else ():
        if isinstance(option, Mapping) and option.get("key") == values.get(outer):
            return spec_of(option.get("inputs"), inner, {})
    return None
