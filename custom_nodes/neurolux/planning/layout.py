"""Lays out a pipeline in memory in one offload mode, and calculates its cost: peak bytes, seconds of transfers. Pure.

"Device" is the memory that weights must be in to compute with them: the card's own, or RAM if there is no card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from . import costs
from .formats import Formats, is_text_encoder
from .records import (
    BESIDE,
    ComponentPlan,
    ComponentShape,
    FamilyCosts,
    Machine,
    OffloadMode,
    PlacementKind,
    Plan,
    Workload,
)

PLACEMENTS: dict[OffloadMode, PlacementKind] = {
    "none": "resident",
    "model": "stage",
    "stream": "stream",
    "sequential": "sequential",
    "disk": "disk",
}


@dataclass(frozen=True)
class LayoutCost:
    """The cost of a layout, in bytes and seconds, without the reserves."""

    device: int
    ram: int
    pinned: int = 0
    seconds: float = 0.0
    copies_in_ram: bool = True


@dataclass(frozen=True)
class Pipeline:
    """A pipeline with its types, the machine and the workload. Holds the totals that every layout needs."""

    family: FamilyCosts
    shapes: Mapping[str, ComponentShape]
    formats: Formats
    machine: Machine
    workload: Workload

    @cached_property
    def bytes(self) -> dict[str, int]:
        """Bytes of each component's weights."""
        return {name: costs.weight_bytes(shape, *self.formats[name]) for name, shape in self.shapes.items()}

    @cached_property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        """Bytes of each component's blocks."""
        return {name: costs.block_bytes(shape, *self.formats[name]) for name, shape in self.shapes.items()}

    @cached_property
    def stages(self) -> dict[str, list[str]]:
        """The components of each stage. A ControlNet runs in the denoiser's stage."""
        text = [name for name in self.shapes if is_text_encoder(name)]
        vae = [name for name in self.shapes if name == "vae"]
        sample = [name for name in self.shapes if name not in (*text, *vae)]
        needed = self.workload.encodes or any(self.shapes[name].needs_vae for name in sample)
        encoding = vae if needed else []
        return {"encode": text, "sample": [*sample, *encoding], "decode": vae}

    @cached_property
    def controls(self) -> list[str]:
        """The ControlNets and the motion adapter. They are loaded whole for their stage; ControlNets are streamed if
        they do not fit."""
        return [name for name in self.shapes if name.startswith(BESIDE)]

    @cached_property
    def denoiser(self) -> str:
        """The component that denoises."""
        return self.family.denoiser

    @cached_property
    def total(self) -> int:
        """Bytes of all weights."""
        return sum(self.bytes.values())

    @cached_property
    def all_converted(self) -> int:
        """Bytes of weights that change type when they are loaded."""
        return sum(
            self.bytes[name] for name, shape in self.shapes.items() if shape.stored not in (None, self.formats[name][0])
        )

    @property
    def converted(self) -> int:
        """Bytes of them that are in RAM at once, where they are written to a file as they are made."""
        return min(self.all_converted, costs.SPILL_BYTES)

    @cached_property
    def loading(self) -> int:
        """Bytes of the device that loading takes, where weights are quantized."""
        return max(
            (
                costs.quantizing_bytes(shape, self.formats[name][0])
                for name, shape in self.shapes.items()
                if self.formats[name][0] in costs.QUANTIZING_BYTES and shape.stored != self.formats[name][0]
            ),
            default=0,
        )

    def work(self, stage: str, tile: int | None) -> int:
        """Working memory of a stage in bytes: activations, and one layer's weights widened to the compute type."""
        key = (stage, tile)
        if key not in self._work:
            self._work[key] = self._work_of(stage, tile)
        return self._work[key]

    @cached_property
    def _work(self) -> dict[tuple[str, int | None], int]:
        return {}

    def _work_of(self, stage: str, tile: int | None) -> int:
        names, workload = self.stages[stage], self.workload
        if not names:
            return 0
        widened = max(costs.widening_bytes(self.shapes[name], *self.formats[name]) for name in names)
        if stage == "encode":
            return widened + max(costs.encode_bytes(self.family, self.formats[name][1]) for name in names)
        if stage == "decode":
            decoding = costs.decode_bytes(
                self.family, workload.width, workload.height, self.formats["vae"][1], tile=tile
            )
            return widened + max(decoding, self.encoding(tile) if workload.encodes else 0)
        compute = self.formats[self.denoiser][1]
        step = widened + costs.sample_bytes(
            self.family, workload.width, workload.attended_height, compute,
            passes=workload.passes, frames=workload.frames,
        )  # fmt: skip
        step += sum(
            costs.control_bytes(self.shapes[name], workload.width, workload.height, self.formats[name][1])
            for name in self.controls
        )
        return max(step, self.encoding(tile)) if "vae" in names or workload.encodes else step

    def encoding(self, tile: int | None) -> int:
        """Working memory for encoding one image with the VAE."""
        compute = self.workload.encodes or self.formats["vae"][1]
        return costs.encode_image_bytes(self.family, self.workload.width, self.workload.height, compute, tile=tile)

    def outside(self, name: str) -> int:
        """Bytes of a component's weights outside its blocks."""
        return self.bytes[name] - sum(self.blocks[name])

    @cached_property
    def split(self) -> list[str]:
        """The components, without ControlNets, that can be streamed block by block."""
        return [name for name, blocks in self.blocks.items() if blocks and name not in self.controls]

    @cached_property
    def split_controls(self) -> list[str]:
        """The ControlNets that can be streamed block by block."""
        return [name for name in self.controls if self.blocks[name]]

    @property
    def steps(self) -> int:
        """Denoising steps of the whole request."""
        return self.workload.steps * self.workload.count

    @cached_property
    def step_seconds(self) -> float:
        """Estimated compute time of one step."""
        return costs.step_flops(self.family, self.shapes[self.denoiser], self.workload) / self.compute_rate

    @property
    def compute_rate(self) -> float:
        """FLOP/s of the device in the type that the denoiser computes in."""
        return costs.compute_rate(self.machine, self.formats[self.denoiser][1])

    def lost_in_steps(self, seconds: float) -> float:
        """The time that ``seconds`` of streaming per step add to all steps, after overlap with computing."""
        return max(0.0, seconds - self.step_seconds) * self.steps


@dataclass(frozen=True)
class Residents:
    """The blocks of one component that stay on the device."""

    count: int
    bytes: int
    streamed: int
    """Bytes of the blocks that are streamed."""
    buffers: int
    """Bytes of the two buffers for streaming. Each holds the largest streamed block."""


@lru_cache(maxsize=256)
def residency_options(blocks: tuple[int, ...]) -> tuple[Residents, ...]:
    """The possible numbers of resident blocks, from none to all. Resident blocks are spread evenly
    (``costs.spread``)."""
    total = sum(blocks)
    ways: dict[int, Residents] = {}
    for share in range(len(blocks) + 1):
        kept = costs.spread(blocks, total * share / max(len(blocks), 1))
        size = sum(blocks[index] for index in kept)
        widest = max((block for index, block in enumerate(blocks) if index not in kept), default=0)
        ways[len(kept)] = Residents(len(kept), size, total - size, 2 * widest)
    return tuple(ways.values())


def residents_of(blocks: tuple[int, ...], count: int) -> Residents:
    """The option with ``count`` resident blocks, or with the next smaller number that exists."""
    return max((way for way in residency_options(blocks) if way.count <= count), key=lambda way: way.count)


def blocks_on_device(blocks: Sequence[int], resident: int) -> int:
    """Bytes that the blocks of a streamed component take on the device: the resident blocks and the two buffers."""
    way = residents_of(tuple(blocks), resident)
    return way.bytes + way.buffers


def lay_out(pipe: Pipeline, mode: OffloadMode, precision: str, tile: int | None, limit: int | None = None) -> Plan:
    """Lay out ``pipe`` in ``mode``. A streaming mode gets the number of resident blocks that loses the least time.

    ``limit``: how many bytes of the device it may use; all free memory by default. ``Plan.fits`` says whether it fits.
    """
    machine = pipe.machine
    available = machine.free_vram if machine.own_memory else machine.free_ram
    budget = available if limit is None else min(limit, available)
    if mode == "disk" or (mode == "stream" and machine.own_memory):
        options = list(streaming_layouts(pipe, mode, tile, budget))
        fitting = [option for option in options if fits(option[1], machine, budget)]
        if not fitting and pipe.split_controls and machine.own_memory:
            split = control_streaming_layouts(pipe, mode, tile, budget)
            fitting = [option for option in split if fits(option[1], machine, budget)]
        if fitting:
            residents, cost = min(fitting, key=lambda option: (option[1].seconds, -resident_bytes(option[0])))
        else:
            residents, cost = min(options, key=lambda option: (shortage(option[1], machine, budget), option[1].seconds))
    else:
        residents = {name: residency_options(pipe.blocks[name])[0] for name in pipe.split} if mode == "stream" else {}
        cost = shared_memory_cost(pipe, tile) if not machine.own_memory else whole_cost(pipe, mode, tile)
        if mode == "sequential" and machine.own_memory and pipe.split_controls and not fits(cost, machine, budget):
            split = {name: residency_options(pipe.blocks[name])[0] for name in pipe.split_controls}
            less = whole_cost(pipe, mode, tile, split)
            residents, cost = (split, less) if less.device < cost.device else (residents, cost)
    return Plan(
        offload=mode,
        precision=precision,
        components=dict(component_plans(pipe, mode, residents)),
        vae_tile=tile,
        vae_slicing=pipe.workload.count > 1,
        peak_vram=max(device_peak(cost, machine), pipe.loading if machine.own_memory else 0),
        peak_ram=ram_peak(cost),
        pinned_ram=cost.pinned,
        transfer_seconds=round(cost.seconds, 3),
        fits=fits(cost, machine, budget),
        reasons=(),
        compute_seconds=round(pipe.step_seconds * pipe.steps, 3),
        loading_vram=pipe.loading if machine.own_memory else 0,
        copies_in_ram=cost.copies_in_ram,
    )


def resident_bytes(residents: Mapping[str, Residents]) -> int:
    """Bytes of the blocks that stay on the device."""
    return sum(resident.bytes for resident in residents.values())


def device_peak(cost: LayoutCost, machine: Machine) -> int:
    """Peak bytes of the card; 0 if the device has no memory of its own."""
    return device_bytes(cost.device) if machine.own_memory else 0


def device_bytes(used: int) -> int:
    """Bytes of the card that ``used`` bytes of weights and activations take, with the reserve."""
    return round(used * (1 + costs.RESERVE_SHARE)) + costs.RESERVE_BYTES


def ram_peak(cost: LayoutCost) -> int:
    """Peak bytes of RAM."""
    return round(cost.ram * (1 + costs.RAM_RESERVE_SHARE)) + costs.RAM_RESERVE_BYTES


def fits(cost: LayoutCost, machine: Machine, budget: int) -> bool:
    """Whether the layout fits into ``budget`` bytes of the device and into RAM."""
    if machine.own_memory and device_peak(cost, machine) > budget:
        return False
    return ram_peak(cost) <= (machine.free_ram if machine.own_memory else min(budget, machine.free_ram))


def shortage(cost: LayoutCost, machine: Machine, budget: int) -> int:
    """Bytes that the layout is short of, on the device and in RAM together."""
    card = max(0, device_peak(cost, machine) - budget)
    return card + max(0, ram_peak(cost) - machine.free_ram)


def component_plans(
    pipe: Pipeline, mode: OffloadMode, residents: Mapping[str, Residents]
) -> Iterator[tuple[str, ComponentPlan]]:
    """The name and the record of each component. A component that cannot be split is loaded whole for its stage."""
    for name in (name for stage in pipe.stages.values() for name in stage):
        shape = pipe.shapes[name]
        kind, count = PLACEMENTS[mode], len(shape.blocks)
        if name in pipe.controls and mode == "sequential":
            kind, count = ("stream", residents[name].count) if name in residents else ("stage", count)
        if mode in ("stream", "disk"):
            if name in residents:
                count = residents[name].count
                if name in pipe.controls:
                    kind = "stream"  # its weights are in RAM, wherever the rest of the pipeline is
                elif count == len(shape.blocks) and pipe.machine.own_memory:
                    kind = "resident"
            else:
                kind = "stage"
        storage, compute = pipe.formats[name]
        yield name, ComponentPlan(storage, compute, kind, count, pipe.bytes[name], len(shape.blocks))


def whole_cost(
    pipe: Pipeline, mode: OffloadMode, tile: int | None, controls: Mapping[str, Residents] | None = None
) -> LayoutCost:
    """The cost of ``none``, ``model`` or ``sequential`` on a card. ``controls``: the ControlNets that are streamed."""
    machine, stages = pipe.machine, pipe.stages
    if mode == "none":
        device = pipe.total + max(pipe.work(stage, tile) for stage in stages)
        kept = LayoutCost(device, pipe.total)
        if ram_peak(kept) <= machine.free_ram:
            return kept
        return LayoutCost(device, pipe.converted, copies_in_ram=False)
    in_ram = ram_peak(LayoutCost(0, pipe.total)) <= machine.free_ram
    if mode == "model":
        device = max(sum(pipe.bytes[name] for name in stages[stage]) + pipe.work(stage, tile) for stage in stages)
        if in_ram:
            return LayoutCost(device, pipe.total, seconds=pipe.total / (machine.transfer_rate * costs.PAGEABLE_SHARE))
        return LayoutCost(device, pipe.converted, seconds=pipe.total / machine.disk_rate, copies_in_ram=False)
    streamed_controls = controls or {}
    layers = {
        name: costs.largest_streamed(shape, embeds=is_text_encoder(name)) * pipe.bytes[name] // max(shape.parameters, 1)
        for name, shape in pipe.shapes.items()
    }
    device = max(
        2 * max((layers[name] for name in names if name not in pipe.controls), default=0)
        + sum(
            costs.embedding_bytes(pipe.shapes[name], pipe.formats[name][1]) for name in names if is_text_encoder(name)
        )
        + sum(pipe.bytes[name] for name in names if name in pipe.controls and name not in streamed_controls)
        + sum(pipe.outside(name) + way.bytes + way.buffers for name, way in streamed_controls.items() if name in names)
        + pipe.work(stage, tile)
        for stage, names in stages.items()
    )
    ram, pinned = pipe.total, min(pipe.total, int(costs.PINNED_SHARE * machine.free_ram))
    rate = streaming_rate(machine, pipe.total, pinned) * costs.LAYERWISE_SHARE
    if not in_ram:
        ram, pinned = max(2 * max(layers.values()), pipe.converted), 2 * max(layers.values())
        rate = min(machine.disk_rate, machine.transfer_rate * costs.LAYERWISE_SHARE)
    sampled = sum(
        pipe.bytes[name] for name in stages["sample"] if name not in pipe.controls or name in streamed_controls
    )
    seconds = pipe.lost_in_steps(sampled / rate) + (pipe.total - sampled) / rate
    return LayoutCost(device, ram, pinned, seconds, copies_in_ram=in_ram)


def shared_memory_cost(pipe: Pipeline, tile: int | None) -> LayoutCost:
    """The cost of every mode except ``disk`` on a device that shares RAM: moving weights would free nothing.

    On a GPU that shares RAM, the weights move to the GPU and leave nothing behind, so they are there once as well.
    """
    return LayoutCost(0, pipe.total + max(pipe.work(stage, tile) for stage in pipe.stages))


def streaming_rate(machine: Machine, streamed: int, pinned: int) -> float:
    """Bytes per second when ``streamed`` bytes are streamed and ``pinned`` of them are pinned."""
    slow = max(0, streamed - pinned) / max(streamed, 1)
    return machine.transfer_rate / (1 - slow + slow / costs.PAGEABLE_SHARE)


def streaming_layouts(
    pipe: Pipeline, mode: OffloadMode, tile: int | None, budget: int
) -> Iterator[tuple[dict[str, Residents], LayoutCost]]:
    """The layouts of ``stream`` or ``disk``. The denoiser's blocks become resident first, then those of T5."""
    ways = {name: residency_options(pipe.blocks[name]) for name in pipe.split}
    nothing = {name: ways[name][0] for name in pipe.split}
    if pipe.denoiser not in ways:
        yield nothing, streaming_cost(pipe, mode, tile, budget, nothing)
        return
    for way in ways[pipe.denoiser]:
        residents = {**nothing, pipe.denoiser: way}
        yield residents, streaming_cost(pipe, mode, tile, budget, residents)
    for name in pipe.split:
        if name != pipe.denoiser:
            for way in ways[name][1:]:
                residents = {**nothing, pipe.denoiser: ways[pipe.denoiser][-1], name: way}
                yield residents, streaming_cost(pipe, mode, tile, budget, residents)


def control_streaming_layouts(
    pipe: Pipeline, mode: OffloadMode, tile: int | None, budget: int
) -> Iterator[tuple[dict[str, Residents], LayoutCost]]:
    """The layouts for a ControlNet that is too large to be loaded whole. Only its blocks may be resident."""
    nothing = {name: residency_options(pipe.blocks[name])[0] for name in (*pipe.split, *pipe.split_controls)}
    yield nothing, streaming_cost(pipe, mode, tile, budget, nothing)
    for name in pipe.split_controls:
        for way in residency_options(pipe.blocks[name])[1:]:
            residents = {**nothing, name: way}
            yield residents, streaming_cost(pipe, mode, tile, budget, residents)


def streaming_cost(
    pipe: Pipeline, mode: OffloadMode, tile: int | None, budget: int, residents: Mapping[str, Residents]
) -> LayoutCost:
    """The cost of streaming with these ``residents`` on a device of ``budget`` bytes."""
    machine = pipe.machine
    guests = {name: size for name, size in pipe.bytes.items() if name not in residents}  # loaded whole for their stage
    outside = {name: pipe.outside(name) for name in residents if name != pipe.denoiser}  # loaded for their stage
    stay = resident_bytes(residents) + (pipe.outside(pipe.denoiser) if pipe.denoiser in residents else 0)
    needs = {
        stage: pipe.work(stage, tile)
        + sum(residents[name].buffers for name in names if name in residents)
        + sum(outside.get(name, 0) + guests.get(name, 0) for name in names)
        for stage, names in pipe.stages.items()
    }
    streamed = {name: resident.streamed for name, resident in residents.items()}
    streaming_bytes = sum(streamed.values())
    per_step = sum(streamed.get(name, 0) for name in (pipe.denoiser, *pipe.controls))
    buffers = sum(resident.buffers for resident in residents.values())
    controls = resident_bytes(
        {name: way for name, way in residents.items() if name in pipe.controls}
    )  # also stay in RAM
    if not machine.own_memory:  # components that are not split are always in RAM
        needs = {stage: need - sum(guests.get(name, 0) for name in pipe.stages[stage]) for stage, need in needs.items()}
        seconds = pipe.lost_in_steps(per_step / machine.disk_rate) + (streaming_bytes - per_step) / machine.disk_rate
        ram = max(stay + sum(guests.values()) + max(needs.values()), pipe.converted)
        return LayoutCost(0, ram, seconds=seconds, copies_in_ram=False)
    # Encoding and decoding may evict resident blocks, which are copied back before the next sampling.
    evicted = min(resident_bytes(residents), max(0, *(device_bytes(stay + need) - budget for need in needs.values())))
    device = max(stay + needs["sample"], *(stay - evicted + need for need in needs.values()))
    guest_bytes = sum(guests.values())
    if mode == "disk":
        kept = sum(pipe.bytes[name] for name in pipe.controls if name in residents)
        ram, pinned, copies = max(guest_bytes + kept + buffers, pipe.converted), buffers, False
        rate = min(machine.disk_rate, machine.transfer_rate)
    elif ram_peak(LayoutCost(0, pipe.total)) > machine.free_ram:
        # Resident weights need no copy in RAM. The rest is read from its files once and stays in the page cache.
        cached = round((pipe.total - stay + controls) / costs.CACHE_SHARE)
        ram, pinned, copies = max(cached, pipe.converted), buffers, False
        rate = machine.transfer_rate * costs.MAPPED_SHARE
    else:
        ram, pinned, copies = pipe.total, min(streaming_bytes, int(costs.PINNED_SHARE * machine.free_ram)), True
        rate = streaming_rate(machine, streaming_bytes, pinned)
    seconds = pipe.lost_in_steps(per_step / rate) + (streaming_bytes - per_step + evicted) / rate
    seconds += (guest_bytes + sum(outside.values())) / (machine.transfer_rate * costs.PAGEABLE_SHARE)
    return LayoutCost(device, ram, pinned, seconds, copies)
