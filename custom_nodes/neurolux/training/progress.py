"""Tells the node that trains how far it is: its bar, its text, and the loss curve as its preview image."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..loading.editor_messages import EditorMessages
from ..loading.node_bar import NodeBar
from ..stages.sample import ProgressSpan
from ..weights.progress import Throttle
from .lora import TrainingReporter
from .loss_curve import draw_loss_curve

CURVE_SECONDS = 2.0
LARGEST_PREVIEW = 512
"""Pixels of its longer side, as ComfyUI's own previews."""


class TrainingProgress(TrainingReporter):
    """For one training of ``steps`` and ``sampling`` steps of sampling after it. Raises when the user interrupts."""

    def __init__(self, title: str, steps: int, sampling: int) -> None:
        self._messages = EditorMessages()
        self._title = title
        self._steps = steps
        self._total = steps + sampling
        self._sampled = 0
        self._bar = NodeBar(self._total)
        self._texts, self._curves = Throttle(), Throttle(CURVE_SECONDS)
        self._begun: tuple[int, float] | None = None

    def phase(self, text: str, *, long: bool = False) -> None:
        """One that takes long is shown in any case."""
        self._bar.check()
        if self._texts.due(last=long):
            self._messages.text(text)

    def begin(self, done: int) -> None:
        self._begun = done, time.monotonic()
        self._bar.show(done, self._total)

    def step(self, losses: Sequence[float]) -> None:
        done, last = len(losses), len(losses) == self._steps
        if self._texts.due(last=last):
            self._messages.text(f"Step {done} of {self._steps}, loss {losses[-1]:.4f}{self._time_left(done)}")
        preview = None
        if self._curves.due(last=last):
            preview = ("JPEG", draw_loss_curve(losses, self._title), LARGEST_PREVIEW)
        self._bar.show(done, self._total, preview)

    def sampling(self, steps: int) -> ProgressSpan:
        span = ProgressSpan(self._steps + self._sampled, self._total)
        self._sampled += steps
        return span

    def _time_left(self, done: int) -> str:
        if self._begun is None or done <= self._begun[0]:
            return ""
        each = (time.monotonic() - self._begun[1]) / (done - self._begun[0])
        left = each * (self._steps - done)
        return f", {each:.1f} s a step, {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"
