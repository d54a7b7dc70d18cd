"""Memory plans executed on simulated cards: each offload mode and each storage type.

The models have few layers, each of full size; ``make dry-run`` asserts the same of all models with all of their layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.pack.dry_run.short_models import short

if TYPE_CHECKING:
    from neurolux.dry_run.records import Outcome

pytestmark = pytest.mark.usefixtures("comfy_modules")
GB = 10**9


def dry_run(
    model: str,
    vram: float,
    ram: int,
    offload: str = "auto",
    precision: str = "auto",
    *,
    whole: bool = False,
    **more: Any,
) -> Outcome:
    """A model on a card of ``vram`` GB in a machine with ``ram`` GB. ``whole``: with all of its layers."""
    from neurolux.dry_run.records import Case
    from neurolux.dry_run.run import run_case

    case = Case(model, int(vram * GB), ram * GB, offload, precision, **more)
    return run_case(case, None if whole else short(model))


@pytest.mark.parametrize(
    ("model", "vram", "ram", "offload", "precision", "expected"),
    [
        ("sd15", 4, 32, "auto", "auto", ("none", "bf16")),
        ("sd15", 4, 32, "sequential", "int8", ("sequential", "int8")),
        ("sdxl-base", 2.5, 32, "auto", "auto", ("stream", "bf16")),
        ("sd15", 4, 32, "model", "fp8", ("model", "fp8")),
        ("sd15", 2, 32, "stream", "nf4", ("stream", "nf4")),
        ("flux-schnell", 3, 4, "auto", "auto", ("stream", "fp8")),
        ("flux-schnell", 3, 4, "disk", "bf16", ("disk", "bf16")),
        ("flux-schnell", 3, 32, "sequential", "bf16", ("sequential", "bf16")),
    ],
)
def test_a_plan_that_fits_is_kept(
    model: str, vram: float, ram: int, offload: str, precision: str, expected: tuple[str, str]
) -> None:
    outcome = dry_run(model, vram, ram, offload, precision)
    assert (outcome.plan.offload, outcome.plan.precision) == expected
    assert outcome.plan.fits
    assert outcome.finished_with == outcome.plan
    assert list(outcome.problems()) == []


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("sd15", {"guidance": 7.5}),
        ("sd15", {"task": "video", "frames": 16}),
        ("sdxl-base", {"task": "encode", "side": 1536, "upcast_vae": True}),
    ],
    ids=str,
)
def test_what_a_stage_takes_was_set_aside(model: str, more: dict[str, Any]) -> None:
    """On a card where everything stays, so that a stage takes nothing but its working memory."""
    outcome = dry_run(model, 48, 64, "none", whole=more.get("task") != "encode", **more)
    assert outcome.rooms
    assert [room for room in outcome.rooms if room.taken > room.reserved] == []
    assert outcome.finished_with is not None
    weights = {name: part.bytes for name, part in outcome.finished_with.components.items()}
    assert ("motion" in weights) == (more.get("task") == "video")
    assert weights.get("motion", 9e8) > 5e8  # a motion adapter has about half as many weights as its UNet


def test_an_image_that_no_card_could_encode_whole_is_encoded_in_tiles() -> None:
    outcome = dry_run("sdxl-base", 6, 32, task="encode", side=1536, upcast_vae=True)
    assert outcome.finished_with is not None
    assert outcome.finished_with.vae_tile is not None
    assert outcome.card <= 5.5 * GB
    assert outcome.warnings == []


@pytest.mark.parametrize(("offload", "precision"), [("model", "bf16"), ("sequential", "bf16"), ("disk", "fp8")])
def test_a_small_ram_is_kept_whatever_is_chosen(offload: str, precision: str) -> None:
    """The weights stay in files, converted or not; what is converted passes through RAM in portions."""
    outcome = dry_run("flux-schnell", 32, 3, offload, precision, task="load")
    assert outcome.plan.fits
    assert outcome.ram <= 1.4 * GB  # the weights are 4 GB, or 2 GB converted
    assert list(outcome.problems()) == []


def test_token_embeddings_are_where_token_ids_are_sent() -> None:
    """However leanly the text encoders are streamed."""
    outcome = dry_run("flux-schnell", 2, 64, "sequential", "bf16", task="prompt")
    assert outcome.plan.offload == "sequential"
    assert list(outcome.problems()) == []


def test_quantizing_takes_no_more_of_the_card_than_planned() -> None:
    outcome = dry_run("sd15", 24, 64, precision="nf4", task="load")
    assert 0 < outcome.stages["load"] <= outcome.plan.loading_vram <= 0.5 * GB
