"""How long jobs take, learned from those that ended. Pure: no clock, no broker."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from pydantic import JsonValue

SAMPLES = 32
"""Ended jobs of one mode and model that are remembered; the last ones tell most of the next."""
MAX_KINDS = 1000
WORK_PARAMETERS = ("num_inference_steps", "width", "height")


class JobKey(NamedTuple):
    """Jobs of one mode and model take times that can be compared."""

    mode: str
    model: str | None


def work_of(parameters: Mapping[str, JsonValue]) -> float | None:
    """Steps x pixels x images, to which the time of one model is about proportional. None where a part is unknown."""
    work = 1.0
    for name in WORK_PARAMETERS:
        value = parameters.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            return None
        work *= value
    images = parameters.get("num_images")
    return work * images if isinstance(images, int) and not isinstance(images, bool) and images > 0 else work


class RunTimes:
    """Seconds that ended jobs ran, by mode and model."""

    def __init__(self) -> None:
        self._samples: dict[JobKey, deque[tuple[float | None, float]]] = {}

    def add(self, key: JobKey, work: float | None, seconds: float) -> None:
        """Remember a job that ran to its end."""
        samples = self._samples.pop(key, None) or deque(maxlen=SAMPLES)
        if len(self._samples) >= MAX_KINDS:
            del self._samples[next(iter(self._samples))]
        samples.append((work, seconds))
        self._samples[key] = samples

    def estimate(self, key: JobKey, work: float | None) -> float | None:
        """Seconds that such a job will run: the median of the same work, else scaled from other work of its kind.

        None where nothing of the kind has ended yet.
        """
        samples = self._samples.get(key, ())
        if same := [seconds for known, seconds in samples if known == work]:
            return median(same)
        rates = [seconds / known for known, seconds in samples if known]
        return median(rates) * work if rates and work is not None else None
