"""One way of laying a pipeline out in memory, costed: bytes at its peak and seconds of transfers. Pure.

"Device" is the memory that the weights must be in to compute: the card's own, or RAM where there is no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from . import costs
from .formats import Formats, is_text_encoder
from .records import (
    CONTROLNET,
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
class Costed:
    """What a layout takes, reserves not yet added."""

    device: int
    ram: int
    pinned: int = 0
    seconds: float = 0.0
    copies_in_ram: bool = True


@dataclass(frozen=True)
class Pipeline:
    """A pipeline whose types are settled, the machine, and what is asked for: the sums that every layout needs."""

    family: FamilyCosts
    shapes: Mapping[str, ComponentShape]
    formats: Formats
    machine: Machine
    workload: Workload

    @cached_property
    def bytes(self) -> dict[str, int]:
        """Weights of each component."""
        return {name: costs.weight_bytes(shape, *self.formats[name]) for name, shape in self.shapes.items()}

    @cached_property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        """Bytes of each component's blocks."""
        return {name: costs.block_bytes(shape, *self.formats[name]) for name, shape in self.shapes.items()}

    @cached_property
    def stages(self) -> dict[str, list[str]]:
        """The components of each stage. A ControlNet works beside the denoiser."""
        text = [name for name in self.shapes if is_text_encoder(name)]
        vae = [name for name in self.shapes if name == "vae"]
        sample = [name for name in self.shapes if name not in (*text, *vae)]
        encoding = vae if any(self.shapes[name].needs_vae for name in sample) else []
        return {"encode": text, "sample": [*sample, *encoding], "decode": vae}

    @cached_property
    def controls(self) -> list[str]:
        """The ControlNets. They come whole for their stage; only where that cannot fit are they streamed."""
        return [name for name in self.shapes if name.startswith(CONTROLNET)]

    @cached_property
    def denoiser(self) -> str:
        """The component that denoises: the largest of its stage."""
        names = [name for name in self.stages["sample"] if name not in self.controls]
        return max(names, key=lambda name: self.shapes[name].parameters)

    @cached_property
    def total(self) -> int:
        """All weights."""
        return sum(self.bytes.values())

    @cached_property
    def converted(self) -> int:
        """Weights whose type is not that of their files: they are in RAM while they are loaded, whatever comes then."""
        return sum(
            self.bytes[name] for name, shape in self.shapes.items() if shape.stored not in (None, self.formats[name][0])
        )

    def work(self, stage: str, tile: int | None) -> int:
        """Working room of a stage: activations, and one layer's weights widened to the type that is computed in."""
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
        widened = max(
            costs.largest_layer(self.shapes[name]) * costs.COMPUTE_BYTES[compute] if storage != compute else 0
            for name in names
            for storage, compute in [self.formats[name]]
        )
        if stage == "encode":
            return widened + max(costs.encode_bytes(self.formats[name][1]) for name in names)
        if stage == "decode":
            return widened + costs.decode_bytes(workload.width, workload.height, self.formats["vae"][1], tile=tile)
        compute = self.formats[self.denoiser][1]
        step = widened + costs.sample_bytes(self.family, workload.width, workload.height, compute)
        step += sum(
            costs.control_bytes(self.shapes[name], workload.width, workload.height, self.formats[name][1])
            for name in self.controls
        )
        return max(step, self.work("decode", tile)) if "vae" in names else step  # encoding takes about as much

    def outside(self, name: str) -> int:
        """Weights of a component that belong to no block."""
        return self.bytes[name] - sum(self.blocks[name])

    @cached_property
    def split(self) -> list[str]:
        """The pipeline's own components that can be streamed block by block."""
        return [name for name, blocks in self.blocks.items() if blocks and name not in self.controls]

    @cached_property
    def split_controls(self) -> list[str]:
        """The ControlNets that can be."""
        return [name for name in self.controls if self.blocks[name]]

    @property
    def steps(self) -> int:
        """Denoising steps of the whole request."""
        return self.workload.steps * self.workload.count

    @cached_property
    def step_seconds(self) -> float:
        """Roughly what one step computes for."""
        return costs.step_flops(self.family, self.shapes[self.denoiser], self.workload) / costs.compute_rate(
            self.machine
        )

    def lost_in_steps(self, seconds: float) -> float:
        """What is left of ``seconds`` of streaming in each step when computing has hidden what it can."""
        return max(0.0, seconds - self.step_seconds) * self.steps


@dataclass(frozen=True)
class Residents:
    """The blocks of one component that stay."""

    count: int
    bytes: int
    coming: int
    """Bytes of the blocks that are streamed."""
    buffers: int
    """Bytes of the two places that they are streamed through, each as large as the largest of them."""


@lru_cache(maxsize=256)
def ways_to_stay(blocks: tuple[int, ...]) -> tuple[Residents, ...]:
    """How many blocks may stay, from none to all; those that stay are spread evenly (``costs.spread``)."""
    total = sum(blocks)
    ways: dict[int, Residents] = {}
    for share in range(len(blocks) + 1):
        kept = costs.spread(blocks, total * share / max(len(blocks), 1))
        size = sum(blocks[index] for index in kept)
        widest = max((block for index, block in enumerate(blocks) if index not in kept), default=0)
        ways[len(kept)] = Residents(len(kept), size, total - size, 2 * widest)
    return tuple(ways.values())


def residents_of(blocks: tuple[int, ...], count: int) -> Residents:
    """The way to stay of ``count`` blocks; of the next fewer where none has just so many."""
    return max((way for way in ways_to_stay(blocks) if way.count <= count), key=lambda way: way.count)


def blocks_on_device(blocks: Sequence[int], resident: int) -> int:
    """Bytes that a streamed component's blocks take of the device at work: those that stay, and the two places."""
    way = residents_of(tuple(blocks), resident)
    return way.bytes + way.buffers


def lay_out(pipe: Pipeline, mode: OffloadMode, precision: str, tile: int | None, limit: int | None = None) -> Plan:
    """``pipe`` in ``mode``, where it streams with as many resident blocks as lose the least time. Says whether it fits.

    ``limit``: bytes that it may take of the device; what the machine has unless given.
    """
    machine = pipe.machine
    there = machine.free_vram if machine.own_memory else machine.free_ram
    room = there if limit is None else min(limit, there)
    if mode == "disk" or (mode == "stream" and machine.own_memory):
        options = list(streaming(pipe, mode, tile, room))
        fitting = [option for option in options if fits(option[1], machine, room)]
        if not fitting and pipe.split_controls and machine.own_memory:
            split = streaming_controls(pipe, mode, tile, room)
            fitting = [option for option in split if fits(option[1], machine, room)]
        if fitting:
            residents, costed = min(fitting, key=lambda option: (option[1].seconds, -stays(option[0])))
        else:
            residents, costed = min(options, key=lambda option: stays(option[0]))
    else:
        residents = {name: ways_to_stay(pipe.blocks[name])[0] for name in pipe.split} if mode == "stream" else {}
        costed = shared(pipe, tile) if not machine.own_memory else whole(pipe, mode, tile)
        if mode == "sequential" and machine.own_memory and pipe.split_controls and not fits(costed, machine, room):
            split = {name: ways_to_stay(pipe.blocks[name])[0] for name in pipe.split_controls}
            less = whole(pipe, mode, tile, split)
            residents, costed = (split, less) if less.device < costed.device else (residents, costed)
    return Plan(
        offload=mode,
        precision=precision,
        components=dict(component_plans(pipe, mode, residents)),
        vae_tile=tile,
        vae_slicing=pipe.workload.count > 1,
        peak_vram=device_peak(costed, machine),
        peak_ram=ram_peak(costed),
        pinned_ram=costed.pinned,
        transfer_seconds=round(costed.seconds, 3),
        fits=fits(costed, machine, room),
        reasons=(),
        compute_seconds=round(pipe.step_seconds * pipe.steps, 3),
        copies_in_ram=costed.copies_in_ram,
    )


def stays(residents: Mapping[str, Residents]) -> int:
    """Bytes of blocks that stay."""
    return sum(resident.bytes for resident in residents.values())


def device_peak(costed: Costed, machine: Machine) -> int:
    """Bytes of the card at the peak; 0 where there is none."""
    return device_bytes(costed.device) if machine.own_memory else 0


def device_bytes(used: int) -> int:
    """Bytes of the card that ``used`` bytes of weights and activations take."""
    return round(used * (1 + costs.RESERVE_SHARE)) + costs.RESERVE_BYTES


def ram_peak(costed: Costed) -> int:
    """Bytes of RAM at the peak."""
    return round(costed.ram * (1 + costs.RAM_RESERVE_SHARE)) + costs.RAM_RESERVE_BYTES


def fits(costed: Costed, machine: Machine, room: int) -> bool:
    """Whether it fits into ``room`` bytes of the device and into RAM."""
    if machine.own_memory and device_peak(costed, machine) > room:
        return False
    return ram_peak(costed) <= (machine.free_ram if machine.own_memory else min(room, machine.free_ram))


def component_plans(
    pipe: Pipeline, mode: OffloadMode, residents: Mapping[str, Residents]
) -> Iterator[tuple[str, ComponentPlan]]:
    """The components' records. What a mode cannot split comes whole for its stage."""
    for name in (name for stage in pipe.stages.values() for name in stage):
        shape = pipe.shapes[name]
        kind, count = PLACEMENTS[mode], len(shape.blocks)
        if name in pipe.controls and mode == "sequential":
            kind, count = ("stream", residents[name].count) if name in residents else ("stage", count)
        if mode in ("stream", "disk"):
            if name in residents:
                count = residents[name].count
                if name in pipe.controls:
                    kind = "stream"  # its weights are in RAM, wherever the pipeline's own are
                elif count == len(shape.blocks) and pipe.machine.own_memory:
                    kind = "resident"
            else:
                kind = "stage"
        storage, compute = pipe.formats[name]
        yield name, ComponentPlan(storage, compute, kind, count, pipe.bytes[name], len(shape.blocks))


def whole(
    pipe: Pipeline, mode: OffloadMode, tile: int | None, controls: Mapping[str, Residents] | None = None
) -> Costed:
    """``none``, ``model`` and ``sequential`` on a card. ``controls``: ControlNets that are streamed."""
    machine, stages = pipe.machine, pipe.stages
    if mode == "none":
        device = pipe.total + max(pipe.work(stage, tile) for stage in stages)
        kept = Costed(device, pipe.total)
        if ram_peak(kept) <= machine.free_ram:
            return kept
        return Costed(device, pipe.converted, copies_in_ram=False)
    if mode == "model":
        device = max(sum(pipe.bytes[name] for name in stages[stage]) + pipe.work(stage, tile) for stage in stages)
        return Costed(device, pipe.total, seconds=pipe.total / (machine.transfer_rate * costs.PAGEABLE_SHARE))
    streamed_controls = controls or {}
    layers = {
        name: costs.largest_layer(shape) * pipe.bytes[name] // max(shape.parameters, 1)
        for name, shape in pipe.shapes.items()
    }
    device = max(
        2 * max((layers[name] for name in names if name not in pipe.controls), default=0)
        + sum(pipe.bytes[name] for name in names if name in pipe.controls and name not in streamed_controls)
        + sum(pipe.outside(name) + way.bytes + way.buffers for name, way in streamed_controls.items() if name in names)
        + pipe.work(stage, tile)
        for stage, names in stages.items()
    )
    pinned = min(pipe.total, int(costs.PINNED_SHARE * machine.free_ram))
    rate = streaming_rate(machine, pipe.total, pinned) * costs.LAYERWISE_SHARE
    sampled = sum(
        pipe.bytes[name] for name in stages["sample"] if name not in pipe.controls or name in streamed_controls
    )
    return Costed(device, pipe.total, pinned, pipe.lost_in_steps(sampled / rate) + (pipe.total - sampled) / rate)


def shared(pipe: Pipeline, tile: int | None) -> Costed:
    """Every mode but ``disk`` where weights and activations share RAM: moving weights would free nothing."""
    return Costed(0, pipe.total + max(pipe.work(stage, tile) for stage in pipe.stages))


def streaming_rate(machine: Machine, streamed: int, pinned: int) -> float:
    """Bytes a second of streaming ``streamed`` bytes of which ``pinned`` could be pinned."""
    slow = max(0, streamed - pinned) / max(streamed, 1)
    return machine.transfer_rate / (1 - slow + slow / costs.PAGEABLE_SHARE)


def streaming(
    pipe: Pipeline, mode: OffloadMode, tile: int | None, room: int
) -> Iterator[tuple[dict[str, Residents], Costed]]:
    """The layouts of ``stream`` or ``disk``: blocks of the denoiser stay first, of T5 when all of those do."""
    ways = {name: ways_to_stay(pipe.blocks[name]) for name in pipe.split}
    nothing = {name: ways[name][0] for name in pipe.split}
    if pipe.denoiser not in ways:
        yield nothing, streamed(pipe, mode, tile, room, nothing)
        return
    for way in ways[pipe.denoiser]:
        residents = {**nothing, pipe.denoiser: way}
        yield residents, streamed(pipe, mode, tile, room, residents)
    for name in pipe.split:
        if name != pipe.denoiser:
            for way in ways[name][1:]:
                residents = {**nothing, pipe.denoiser: ways[pipe.denoiser][-1], name: way}
                yield residents, streamed(pipe, mode, tile, room, residents)


def streaming_controls(
    pipe: Pipeline, mode: OffloadMode, tile: int | None, room: int
) -> Iterator[tuple[dict[str, Residents], Costed]]:
    """The layouts where a ControlNet is too large to come whole: its blocks stay while there is room, no others."""
    nothing = {name: ways_to_stay(pipe.blocks[name])[0] for name in (*pipe.split, *pipe.split_controls)}
    yield nothing, streamed(pipe, mode, tile, room, nothing)
    for name in pipe.split_controls:
        for way in ways_to_stay(pipe.blocks[name])[1:]:
            residents = {**nothing, name: way}
            yield residents, streamed(pipe, mode, tile, room, residents)


def streamed(
    pipe: Pipeline, mode: OffloadMode, tile: int | None, room: int, residents: Mapping[str, Residents]
) -> Costed:
    """What it costs to stream with these ``residents`` on a device of ``room`` bytes."""
    machine = pipe.machine
    guests = {name: size for name, size in pipe.bytes.items() if name not in residents}  # come whole for their stage
    outside = {name: pipe.outside(name) for name in residents if name != pipe.denoiser}  # come with their stage
    stay = stays(residents) + (pipe.outside(pipe.denoiser) if pipe.denoiser in residents else 0)
    needs = {
        stage: pipe.work(stage, tile)
        + sum(residents[name].buffers for name in names if name in residents)
        + sum(outside.get(name, 0) + guests.get(name, 0) for name in names)
        for stage, names in pipe.stages.items()
    }
    coming = {name: resident.coming for name, resident in residents.items()}
    streaming_bytes = sum(coming.values())
    per_step = sum(coming.get(name, 0) for name in (pipe.denoiser, *pipe.controls))
    buffers = sum(resident.buffers for resident in residents.values())
    controls = stays({name: way for name, way in residents.items() if name in pipe.controls})  # stay in RAM as well
    if not machine.own_memory:  # what is not split lies in RAM all the time
        needs = {stage: need - sum(guests.get(name, 0) for name in pipe.stages[stage]) for stage, need in needs.items()}
        seconds = pipe.lost_in_steps(per_step / machine.disk_rate) + (streaming_bytes - per_step) / machine.disk_rate
        ram = max(stay + sum(guests.values()) + max(needs.values()), pipe.converted)
        return Costed(0, ram, seconds=seconds, copies_in_ram=False)
    # Encoding and decoding may push resident blocks out; those come back for the next sampling.
    pushed_out = min(stays(residents), max(0, *(device_bytes(stay + need) - room for need in needs.values())))
    device = max(stay + needs["sample"], *(stay - pushed_out + need for need in needs.values()))
    guest_bytes = sum(guests.values())
    if mode == "disk":
        kept = sum(pipe.bytes[name] for name in pipe.controls if name in residents)
        ram, pinned, copies = max(guest_bytes + kept + buffers, pipe.converted), buffers, False
        rate = min(machine.disk_rate, machine.transfer_rate)
    elif ram_peak(Costed(0, pipe.total)) > machine.free_ram:
        # What stays on the device needs no copy in RAM; the rest is read from its files once, and RAM keeps it.
        cached = round((pipe.total - stay + controls) / costs.CACHE_SHARE)
        ram, pinned, copies = max(cached, pipe.converted), buffers, False
        rate = machine.transfer_rate * costs.MAPPED_SHARE
    else:
        ram, pinned, copies = pipe.total, min(streaming_bytes, int(costs.PINNED_SHARE * machine.free_ram)), True
        rate = streaming_rate(machine, streaming_bytes, pinned)
    seconds = pipe.lost_in_steps(per_step / rate) + (streaming_bytes - per_step + pushed_out) / rate
    seconds += (guest_bytes + sum(outside.values())) / (machine.transfer_rate * costs.PAGEABLE_SHARE)
    return Costed(device, ram, pinned, seconds, copies)
