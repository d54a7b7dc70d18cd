"""What a dry run is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..planning.costs import CONTEXT_BYTES, CONVOLUTION_BYTES, RESERVE_BYTES, RESERVE_SHARE, SYSTEM_RAM_BYTES
from ..planning.records import Plan, gigabytes
from .card import Faults, Room
from .clocks import Hazard

Task = Literal["text-to-image", "image-to-image", "fill", "controlnet", "encode", "prompt", "video", "load"]
WHOLE_REQUESTS: tuple[Task, ...] = ("text-to-image", "image-to-image", "fill", "controlnet")
"""Tasks that go through all stages, so that the largest of them is among what was counted."""
LOOSEST = 1.25
"""A plan may predict so much more than there was: beyond that, memory is left unused. What it sets aside for
fragmentation and for the workspaces of kernels is no part of that: a dry run has neither."""


@dataclass(frozen=True)
class Case:
    """What to run, on which machine."""

    model: str
    vram: int
    ram: int
    offload: str = "auto"
    precision: str = "auto"
    side: int | None = None
    capability: tuple[int, int] = (8, 6)
    task: Task = "text-to-image"
    """``image-to-image``: encode an image and redraw half of it. ``fill``: an image with a mask, by a model that was
    trained for that. ``controlnet``: guided by one. ``encode``: only an image, by the VAE. ``prompt``: only a prompt.
    ``load``: only load the model."""
    frames: int = 1
    upcast_vae: bool | None = None
    """Whether the VAE wants fp32; None for the catalog's."""
    guidance: float = -1.0
    images: int = 1
    steps: int = 1
    faults: Faults = field(default_factory=Faults, hash=False, compare=False)


@dataclass
class Outcome:
    """What a dry run counted, in bytes."""

    case: Case
    plan: Plan
    card: int = 0
    """The most on the card at once."""
    ram: int = 0
    """The most in RAM at once, pinned and not, without what is mapped."""
    pinned: int = 0
    to_card: int = 0
    unpinned_to_card: int = 0
    left_on_card: int = 0
    """After the model was dropped."""
    left_in_ram: int = 0
    hazards: list[Hazard] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rooms: list[Room] = field(default_factory=list)
    """The working memory of each stage."""
    stages: dict[str, int] = field(default_factory=dict)
    """The most on the card, by stage."""
    finished_with: Plan | None = None
    """The plan at the end, if memory ran out meanwhile."""

    def problems(self) -> Iterator[str]:
        """What a plan must hold and does not, one sentence each."""
        plan, case = self.finished_with or self.plan, self.case
        free_card = case.vram - CONTEXT_BYTES
        free_ram = case.ram - min(SYSTEM_RAM_BYTES, case.ram // 4)
        if self.card > plan.peak_vram:
            yield f"{gigabytes(self.card)} on the card, planned were {gigabytes(plan.peak_vram)}"
        if plan.fits and plan.peak_vram > free_card:
            yield f"planned are {gigabytes(plan.peak_vram)} of a card with {gigabytes(free_card)}"
        if self.ram > plan.peak_ram:
            yield f"{gigabytes(self.ram)} in RAM, planned were {gigabytes(plan.peak_ram)}"
        if self.ram > free_ram:
            yield f"{gigabytes(self.ram)} in RAM of {gigabytes(free_ram)}"
        counted = (plan.peak_vram - RESERVE_BYTES) / (1 + RESERVE_SHARE) - CONVOLUTION_BYTES
        if case.task in WHOLE_REQUESTS and counted > LOOSEST * self.card:
            yield f"planned are {gigabytes(plan.peak_vram)} for {gigabytes(self.card)} on the card"
        if self.left_on_card or self.left_in_ram:
            yield f"after the drop {gigabytes(self.left_on_card + self.left_in_ram)} are left"
        if self.hazards:
            yield f"{len(self.hazards)} copies may come too early: {self.hazards[0]}"
