"""What a LoRA is trained with: checked, and compared with what an interrupted training was begun with. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..catalog.models import Model
from ..errors import InvalidParameter
from ..families.registry import families, family_of
from ..families.spec import TrainingFormula

MOST_STEPS = 100_000
MOST_BATCH = 64
MOST_RANK = 256
HIGHEST_RATE = 0.1
LONGEST_TRIGGER = 100
NAME = re.compile(r"\w[\w .+-]{0,99}")
WARM_UP_STEPS = 10
"""Over which the learning rate rises. Adam's first steps are as long as its rate whatever the gradient is."""


@dataclass(frozen=True)
class LoraSettings:
    """Every value that the weights depend on beside the images; ``steps`` is where to stop."""

    name: str
    steps: int
    rank: int
    learning_rate: float
    batch: int
    side: int
    """Of the square that is trained on, in pixels."""
    seed: int
    trigger: str

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, from 0. It does not depend on how many follow: more can be added later."""
        return self.learning_rate * min(1.0, (step + 1) / WARM_UP_STEPS)

    def picks(self, step: int, count: int) -> list[int]:
        """Which of ``count`` images are in the batch of ``step``: all in turn, each round in another order."""
        places = range(step * self.batch, (step + 1) * self.batch)
        return [int(self._round(place // count, count)[place % count]) for place in places]

    def _round(self, number: int, count: int) -> np.ndarray:
        return np.random.default_rng((self.seed, number)).permutation(count)

    def noise_seed(self, step: int) -> int:
        """Seeds the noise of ``step``, so that a training that goes on draws what an unbroken one would have."""
        return int(np.random.SeedSequence((self.seed, 1, step)).generate_state(1, np.uint64)[0] >> 1)


def formula_of(model: Model) -> TrainingFormula:
    """How the model's family trains a LoRA. Raises InvalidParameter for a family that does not."""
    formula = family_of(model.family).training
    if formula is None:
        trained = [family.name for family in families().values() if family.training is not None]
        raise InvalidParameter(
            "model", f"{model.name} is a {model.family} model; LoRAs are trained on {', '.join(trained)} models"
        )
    return formula


def check_model(model: Model, variant: int | None, prediction: str | None) -> None:
    """Raise InvalidParameter for a model that no LoRA can be trained on here."""
    formula_of(model)
    if model.purpose in ("fill", "edit"):
        raise InvalidParameter(
            "model",
            f"{model.name} was trained to {model.purpose} images, not to generate them from a prompt alone; train on "
            "the model that it was made from",
        )
    if prediction not in (None, "epsilon", "v_prediction"):
        raise InvalidParameter(
            "model",
            f"{model.name} with {variant} steps predicts the image itself ({prediction}), which cannot be trained; "
            "choose another number of steps on the loader, or the model that it was made from",
        )


def check_settings(model: Model, settings: LoraSettings) -> LoraSettings:
    """``settings`` with the model's own values for zeros. Raises InvalidParameter."""
    if not NAME.fullmatch(settings.name):
        raise InvalidParameter(
            "name", f"name {settings.name!r} is not a file name; use letters, digits, spaces and . _ + -, 100 at most"
        )
    if len(settings.trigger) > LONGEST_TRIGGER:
        raise InvalidParameter("trigger", f"trigger has {len(settings.trigger)} characters; use {LONGEST_TRIGGER}")
    bounds = {"steps": MOST_STEPS, "rank": MOST_RANK, "batch": MOST_BATCH}
    for field, most in bounds.items():
        value = getattr(settings, field)
        if not 1 <= value <= most:
            raise InvalidParameter(field, f"{field} {value} is outside 1 to {most}")
    rate = settings.learning_rate or model.lora_learning_rate
    if not 0 < rate <= HIGHEST_RATE:
        raise InvalidParameter("learning_rate", f"learning_rate {rate:g} is outside 0 to {HIGHEST_RATE:g}")
    side = settings.side or model.defaults.width
    model.limits.width.check("resolution", side)
    model.limits.height.check("resolution", side)
    return LoraSettings(**{**asdict(settings), "learning_rate": rate, "side": side})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was, each for a sentence; values by their names."""
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            yield f"{key} was {shown(before.get(key))} and is {shown(now.get(key))}"


def shown(value: Any) -> str:
    """A value for a sentence; a hash by its beginning."""
    return str(value)[:8] if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) else repr(value)
