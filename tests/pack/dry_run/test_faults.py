"""What goes wrong on a card, wherever it may: the image is made in a leaner way, or the error says what to do, and
nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.pack.dry_run.short_models import short

if TYPE_CHECKING:
    from neurolux.dry_run.run import DryRun
    from neurolux.loading.loaded import LoadedPipeline

pytestmark = pytest.mark.usefixtures("comfy_modules")
GB = 10**9


@contextmanager
def loaded(vram: float, ram: int, offload: str = "auto", **faults: Any) -> Iterator[tuple[DryRun, LoadedPipeline]]:
    """Stable Diffusion 1.5 with few layers on a simulated card."""
    from neurolux.dry_run.card import Faults, SimulatedMachine
    from neurolux.dry_run.records import Case
    from neurolux.dry_run.run import DryRun

    case = Case("sd15", int(vram * GB), ram * GB, offload)
    dry = DryRun(SimulatedMachine(case.vram, case.ram, faults=Faults(**faults)), short("sd15"))
    with dry.running():
        handle = dry.handle(case)
        yield dry, dry.load(handle)
    assert dry.machine.alive["card"] <= 1024  # the caller's scheduler still has its steps
    assert [str(hazard) for hazard in dry.machine.hazards] == []


def image(pipeline: LoadedPipeline, number: int = 0) -> str | None:
    """Make one with a new prompt; returns what went wrong by name."""
    from neurolux.dry_run.records import Case
    from neurolux.dry_run.tasks import make_image
    from neurolux.errors import OutOfMemory

    try:
        make_image(pipeline, Case("sd15", 0, 0, guidance=1.0), f"number {number}", lambda stage: None)
    except OutOfMemory as error:
        return str(error)
    return None


def test_memory_that_runs_out_at_any_allocation_is_survived() -> None:
    """At some of them; ``imagegen plan --dry-run --sweep 1`` tries all."""
    from neurolux.dry_run.records import Case
    from neurolux.dry_run.sweep import Sweep

    done = Sweep(Case("sd15", 8 * GB, 32 * GB, "none", guidance=1.0), short("sd15"), every=300).run()
    assert done.tried >= 2
    assert done.problems == []


def test_memory_that_runs_out_while_weights_are_quantized_is_survived() -> None:
    from neurolux.dry_run.card import Faults
    from neurolux.dry_run.records import Case
    from neurolux.dry_run.run import run_case

    case = Case("sd15", 8 * GB, 32 * GB, precision="int8", task="load", faults=Faults(out_of_memory_at=100))
    outcome = run_case(case, short("sd15"))
    assert case.faults.happened
    assert outcome.left_on_card == outcome.left_in_ram == 0


def test_pins_that_are_refused_only_make_copies_slower() -> None:
    with loaded(2, 32, "stream", refuses_pins=True) as (dry, pipeline):
        assert image(pipeline) is None
        assert dry.machine.peak_pinned == 0
        assert pipeline.take_warnings() == []


def test_a_card_that_overstates_its_free_memory_gets_a_leaner_plan() -> None:
    with loaded(2.2, 32, overstated=2 * GB) as (_, pipeline):
        assert pipeline.placement.plan.offload == "none"
        assert image(pipeline) is None
        assert pipeline.placement.plan.offload != "none"
        (warning,) = pipeline.take_warnings()
        assert "memory ran out" in warning
        assert image(pipeline, 1) is None


@pytest.mark.parametrize("offload", ["stream", "disk"])
def test_an_interrupt_in_any_block_leaves_nothing_under_way(offload: str) -> None:
    import comfy.model_management as mm

    with loaded(2, 32, offload) as (dry, pipeline):
        assert image(pipeline) is None
        on_card = dry.machine.alive["card"]
        unet: Any = pipeline.denoiser
        for module in (unet.down_blocks[0].resnets[0], unet.mid_block.attentions[0]):

            def stop(*_: object) -> None:
                raise mm.InterruptProcessingException

            hook = module.register_forward_hook(stop)
            with pytest.raises(mm.InterruptProcessingException), torch.no_grad():
                image(pipeline)
            hook.remove()
            assert dry.machine.alive["card"] <= on_card
        assert image(pipeline) is None


def test_weights_are_there_once_on_a_device_that_shares_the_ram() -> None:
    """They move to the device, which is the same memory, and leave no copy behind."""
    from neurolux.dry_run.card import SimulatedMachine
    from neurolux.dry_run.device import CARD, SimulatedBackend
    from neurolux.dry_run.tensors import simulated_tensors
    from neurolux.families.blocks import NO_BLOCKS
    from neurolux.memory.backends.choice import replaced
    from neurolux.memory.streaming import Residency
    from neurolux.memory.units import split_into_blocks

    class Shared(SimulatedBackend):
        """As on Apple's GPUs."""

        masters_move = True

    machine = SimulatedMachine(8 * GB, 8 * GB)
    with replaced(Shared(machine)), simulated_tensors(machine), torch.no_grad():
        module = torch.nn.Sequential(*(torch.nn.Linear(512, 512, bias=False) for _ in range(3)))
        size = 3 * 512 * 512 * 4
        residency = Residency(*split_into_blocks(module, NO_BLOCKS), CARD)
        assert (machine.alive["ram"], machine.alive["card"]) == (size, 0)
        for _ in range(2):
            residency.place(float("inf"))
            assert (machine.alive["ram"], machine.alive["card"]) == (0, size)
            residency.leave()
            assert (machine.alive["ram"], machine.alive["card"]) == (0, size)
