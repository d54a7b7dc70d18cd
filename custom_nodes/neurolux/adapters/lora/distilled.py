"""What the LoRA of a distilled model changes beside weights: the number of steps, the guidance and the schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ...catalog.models import Model
from ...families.registry import family_of
from ...loading.handle import AppliedLora
from ...loading.loaded import LoadedPipeline


def as_sampled(model: Model, loras: Iterable[AppliedLora]) -> Model:
    """``model`` with the defaults and the scheduler that a distilled LoRA among ``loras`` was trained for.

    Its limits stay: at less than full strength, other steps and some guidance may look better.
    """
    family = family_of(model.family)
    if family.loras is None or not family.loras.distills or family.single_files is None:
        return model
    found = (family.single_files.steps_of(lora.file.path.name) for lora in loras if lora.strength > 0)
    steps = next((steps for steps in found if steps is not None), None)
    if steps is None:
        return model
    distilled = family.single_files.distilled(model, steps)
    return replace(model, defaults=distilled.defaults, scheduler=distilled.scheduler)


@contextmanager
def scheduled(loaded: LoadedPipeline, pipe: Any) -> Iterator[None]:
    """Meanwhile ``pipe``, one over the components of ``loaded``, has the scheduler that its active LoRAs need."""
    import diffusers

    wanted = as_sampled(loaded.model, loaded.loras.active).scheduler
    own = pipe.scheduler
    if wanted is None or wanted == loaded.model.scheduler:
        yield
        return
    pipe.scheduler = getattr(diffusers, wanted.class_name).from_config(dict(own.config), **wanted.config)
    try:
        yield
    finally:
        pipe.scheduler = own
