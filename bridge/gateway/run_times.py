"""How long jobs take, learned from earlier jobs. Pure: no clock, no broker."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from pydantic import JsonValue

SAMPLES = 32
"""The number of remembered jobs for each mode and model; recent jobs predict the next best."""
MAX_KINDS = 1000
WORK_PARAMETERS = ("num_inference_steps", "width", "height")


class JobKey(NamedTuple):
    """Jobs of the same mode and model take comparable times."""

    mode: str
    model: str | None


def work_of(parameters: Mapping[str, JsonValue]) -> float | None:
    """Steps x pixels x images; run time is roughly proportional to it. None if a factor is unknown."""
    work = 1.0
    for name in WORK_PARAMETERS:
        value = parameters.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            return None
        work *= value
    images = parameters.get("num_images")
    return work * images if isinstance(images, int) and not isinstance(images, bool) and images > 0 else work


class RunTimes:
    """The run times of ended jobs in seconds, by mode and model."""

    def __init__(self) -> None:
        self._samples: dict[JobKey, deque[tuple[float | None, float]]] = {}

    def add(self, key: JobKey, work: float | None, seconds: float) -> None:
        """Remember a job that is done."""
        samples = self._samples.pop(key, None) or deque(maxlen=SAMPLES)
        if len(self._samples) >= MAX_KINDS:
            del self._samples[next(iter(self._samples))]
        samples.append((work, seconds))
        self._samples[key] = samples

    def estimate(self, key: JobKey, work: float | None) -> float | None:
        """The estimated run time of such a job: the median for the same work, else scaled from other work.

        None if no job of this mode and model has ended yet.
        """
        samples = self._samples.get(key, ())
        if same := [seconds for known, seconds in samples if known == work]:
            return median(same)
        rates = [seconds / known for known, seconds in samples if known]
        return median(rates) * work if rates and work is not None else None
