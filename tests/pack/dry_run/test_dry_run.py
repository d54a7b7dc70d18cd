"""Memory plans executed: the full-size models on simulated cards, each offload mode and each storage type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from neurolux.dry_run.run import Outcome

pytestmark = pytest.mark.usefixtures("comfy_modules")
GB = 10**9


def dry_run(model: str, vram: int, ram: int, offload: str = "auto", precision: str = "auto", **more: Any) -> Outcome:
    """A model on a card of ``vram`` GB in a machine with ``ram`` GB."""
    from neurolux.dry_run.run import Case, run_case

    return run_case(Case(model, vram * GB, ram * GB, offload, precision, **more))


@pytest.mark.parametrize(
    ("model", "vram", "ram", "offload", "precision", "expected"),
    [
        ("sd15", 4, 32, "auto", "auto", ("none", "bf16")),
        ("sd15", 4, 32, "sequential", "int8", ("sequential", "int8")),
        ("sdxl-base", 6, 32, "auto", "auto", ("stream", "bf16")),
        ("sdxl-base", 8, 32, "model", "fp8", ("model", "fp8")),
        ("flux-schnell", 8, 32, "auto", "auto", ("stream", "fp8")),
        ("flux-schnell", 8, 16, "disk", "auto", ("disk", "bf16")),
        ("flux-schnell", 6, 64, "sequential", "bf16", ("sequential", "bf16")),
        ("flux-schnell", 12, 16, "auto", "nf4", ("stream", "nf4")),
    ],
)
def test_a_plan_that_fits_is_kept(
    model: str, vram: int, ram: int, offload: str, precision: str, expected: tuple[str, str]
) -> None:
    outcome = dry_run(model, vram, ram, offload, precision)
    assert (outcome.plan.offload, outcome.plan.precision) == expected
    assert outcome.plan.fits
    assert outcome.finished_with == outcome.plan
    assert list(outcome.problems()) == []
