"""Memory plans: the records of the node pack's planner, as JSON."""

from __future__ import annotations

from bridge.contract.wire import PackModel


class PlannedMachine(PackModel):
    """The machine of a plan. `free_vram` is 0 without a GPU; rates are in bytes a second and, where known, FLOP/s
    (`compute_rate` in 16 bits). `rates_from`: assumed, card (a table of cards) or measured."""

    device: str
    free_vram: int
    free_ram: int
    bf16: bool
    fp16: bool
    transfer_rate: float
    disk_rate: float
    compute_rate: float | None
    fp32_rate: float | None = None
    card: str = ""
    rates_from: str = "assumed"
    disk_from: str = "assumed"


class PlannedImage(PackModel):
    """The request of a plan: `count` images of `steps` steps each, one after the other.

    `passes` of the denoiser in each step (2 with guidance); `frames` of a video; `encodes`: the type that an image to
    begin with is encoded in, if there is one."""

    width: int
    height: int
    count: int
    steps: int
    passes: int = 1
    frames: int = 1
    encodes: str | None = None


class PlannedComponent(PackModel):
    """Where a component's weights are. `resident_blocks` of its `blocks` stay there; `bytes` counts all its weights."""

    storage: str
    compute: str
    placement: str
    resident_blocks: int
    blocks: int
    bytes: int


class MemoryPlan(PackModel):
    """Where each component lives and in which type, the memory it needs (bytes), the time it costs (seconds a request),
    and why."""

    offload: str
    precision: str
    components: dict[str, PlannedComponent]
    vae_tile: int | None
    vae_slicing: bool
    peak_vram: int
    peak_ram: int
    pinned_ram: int
    loading_vram: int = 0
    transfer_seconds: float
    compute_seconds: float
    copies_in_ram: bool
    fits: bool
    reasons: list[str]


class ModelPlan(PackModel):
    """A plan for one model: the machine, the request, the plan, and the plan as a table."""

    model: str
    machine: PlannedMachine
    picture: PlannedImage
    plan: MemoryPlan
    table: str
