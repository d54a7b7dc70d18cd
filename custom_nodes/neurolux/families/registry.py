"""The registry of supported families: every module in this folder that exports a ``FAMILY``."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

from ..catalog.models import Model
from ..errors import InvalidParameter
from .spec import FamilySpec, Part, PipelineClass, Task


@cache
def families() -> dict[str, FamilySpec]:
    """All families by name."""
    names = (found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if not found.ispkg)
    found = (getattr(import_module(f"{__package__}.{name}"), "FAMILY", None) for name in names)
    return {family.name: family for family in found if isinstance(family, FamilySpec)}


def family_of(name: str) -> FamilySpec:
    """The family called ``name``. Raises ValueError for an unknown name."""
    try:
        return families()[name]
    except KeyError:
        raise ValueError(f"unknown family {name!r}; known are {', '.join(families())}") from None


def pipeline_class(model: Model, task: Task) -> PipelineClass:
    """The pipeline of ``model``'s family for ``task``. Raises InvalidParameter, which names the families with one."""
    family = family_of(model.family)
    found = family.pipelines.get((task, None))
    if found is None:
        others = ", ".join(one.title for one in families().values() if (task, None) in one.pipelines)
        raise InvalidParameter(
            "model",
            f"{model.name} is a model of {family.title}, which has no {task} here; choose a model of {others}",
        )
    return found


def all_parts() -> Iterator[Part]:
    """The parts of all families, without duplicates."""
    seen: set[str] = set()
    for family in families().values():
        for component in family.components.values():
            if component.part.name not in seen:
                seen.add(component.part.name)
                yield component.part
