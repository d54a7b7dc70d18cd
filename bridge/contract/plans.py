"""What the wire says of a memory plan: the records of the node pack's planner, as JSON."""

from __future__ import annotations

from bridge.contract.wire import PackModel


class PlannedMachine(PackModel):
    """What was planned for. `free_vram` is 0 without a card; rates are bytes a second, and FLOP/s where known."""

    device: str
    free_vram: int
    free_ram: int
    bf16: bool
    fp16: bool
    transfer_rate: float
    disk_rate: float
    compute_rate: float | None


class PlannedImage(PackModel):
    """What is to be drawn: `count` images of so many steps, one after the other."""

    width: int
    height: int
    count: int
    steps: int


class PlannedComponent(PackModel):
    """Where a component's weights are. `resident_blocks` of its `blocks` stay; `bytes` are those of all its weights."""

    storage: str
    compute: str
    placement: str
    resident_blocks: int
    blocks: int
    bytes: int


class MemoryPlan(PackModel):
    """What lies where, in which type, what that takes (bytes) and costs (seconds a request), and why."""

    offload: str
    precision: str
    components: dict[str, PlannedComponent]
    vae_tile: int | None
    vae_slicing: bool
    peak_vram: int
    peak_ram: int
    pinned_ram: int
    transfer_seconds: float
    compute_seconds: float
    copies_in_ram: bool
    fits: bool
    reasons: list[str]


class ModelPlan(PackModel):
    """The answer: the model, the machine and the image that were planned for, the plan, and the plan as a table."""

    model: str
    machine: PlannedMachine
    picture: PlannedImage
    plan: MemoryPlan
    table: str
