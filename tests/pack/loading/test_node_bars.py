"""The bar on the running node: every phase is seen, and an interrupt is heeded, also where ComfyUI drops updates."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Seen = list[tuple[int, int]]


@pytest.fixture(params=["every update is sent", "updates are dropped"])
def seen(request: pytest.FixtureRequest, comfy_modules: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """What ComfyUI's hook gets, as (value, maximum). Newer ComfyUIs drop updates; the pinned one does not."""
    import comfy.model_management as mm
    import comfy.utils

    class Dropping(comfy.utils.ProgressBar):
        """Sends the first value, the last, and what is at least a half more than was sent before."""

        sent: float | None = None

        def update_absolute(self, value: int, total: int | None = None, preview: object = None) -> None:
            self.total = self.total if total is None else total
            if self.sent is None or value >= self.total or value - self.sent >= self.total / 2:
                self.sent = value
                super().update_absolute(value, total, preview)
            self.current = value

    if request.param == "updates are dropped":
        monkeypatch.setattr(comfy.utils, "ProgressBar", Dropping)
    server: Any = ModuleType("server")  # the real one cannot be imported beside what the tests install
    server.PromptServer = SimpleNamespace(instance=None)
    monkeypatch.setitem(sys.modules, "server", server)
    updates: Seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: updates.append((value, total)))
    yield updates
    mm.interrupt_current_processing(False)


def test_each_phase_of_loading_has_a_bar_of_its_own(seen: Seen) -> None:
    from neurolux.loading.node_progress import NodeReporter
    from neurolux.weights.progress import Transfer

    reporter = NodeReporter()
    for done in (10, 1000):
        reporter.downloading(Transfer("a/b", "c", done, 1000, 1.0))
    for model in ("first", "second"):
        reporter.reading(model, 3, 500)
        reporter.reading(model, 500, 500)
    assert seen == [(10, 1000), (1000, 1000), *[(3, 500), (500, 500)] * 2]


def reporting() -> Iterator[Callable[[], object]]:
    """Whatever shows a bar: a call that shows a little more than the one before."""
    from neurolux.loading.node_bar import NodeBar
    from neurolux.loading.node_progress import NodeReporter
    from neurolux.preprocess.networks import ImageProgress
    from neurolux.training.progress import TrainingProgress
    from neurolux.weights.progress import Transfer

    reporter, bar, training, images = (
        NodeReporter(),
        NodeBar(10_000),
        TrainingProgress("x", 1000, 0),
        ImageProgress(1000),
    )
    losses: list[float] = []
    training.begin(0)
    yield lambda: reporter.downloading(Transfer("a/b", "c", 1, 1000, 1.0))
    yield lambda: reporter.reading("model", 1, 1000)
    yield reporter.check
    yield lambda: bar.show(1)
    yield bar.step
    yield images.step
    yield images.check
    yield lambda: training.phase("preparing")
    yield lambda: (losses.append(0.5), training.step(losses))


def test_an_interrupt_stops_at_the_next_report_whatever_the_bar_drops(seen: Seen) -> None:
    import comfy.model_management as mm

    for report in reporting():
        report()
        report()
        mm.interrupt_current_processing()
        with pytest.raises(mm.InterruptProcessingException):
            report()
    assert not mm.processing_interrupted()
