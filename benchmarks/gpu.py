"""Every offload mode on one CUDA GPU, under caps that stand in for smaller cards: full-size models, random weights.

``python -m benchmarks.gpu [--models flux-schnell] [--caps 8 12] [--modes stream] [--json FILE]`` downloads nothing.
Compared with plain diffusers (resident, and its own model offload) and with ComfyUI's own loader and sampler, in the
same run. On a machine without CUDA it says so and ends; ``--dry-run`` goes through all of it on tiny models, where the
figures mean nothing and one cap stands for all.

It ends after ten minutes (``--limit``), wherever it is, and prints what it has. First a tiny model is computed on the
GPU and on the CPU, and the images are compared; exit code 1 says that they differ.

Columns: seconds of one image with a new prompt (the middle one), peak memory of the GPU and what the plan predicted,
most pinned RAM, what the transfers achieved while images were made, and which share of them computing hid:
1 - (seconds - seconds of computing alone) / (bytes transferred / measured rate of the bus).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_checks import LIMIT_S, PARITY_TOLERANCE, TimeIsUp, limited, parity_difference, parity_line
from benchmarks.in_process import settle_environment, start_comfyui

if TYPE_CHECKING:
    import torch
    from neurolux.families.blocks import BlockLists

CAPS_GB = (6, 8, 12, 16, 24)
MODES = ("none", "model", "stream", "sequential", "disk")
REPEATS = 3
DRY_CAPS = 1
"""Of the caps, how many a dry run goes through: none of them has an effect on a CPU, and each takes as long again."""


@dataclass(frozen=True)
class Row:
    """One measurement. A ``failure`` is what happened instead."""

    model: str
    who: str
    cap_gb: float | None
    seconds: float | None = None
    peak_vram_gb: float | None = None
    planned_vram_gb: float | None = None
    """What the plan predicted for it; None for others than the pack."""
    pinned_gb: float | None = None
    moved_gb: float | None = None
    hidden: float | None = None
    failure: str = ""

    @property
    def rate_gb_s(self) -> float | None:
        """Bytes transferred in each second of the image."""
        return self.moved_gb / self.seconds if self.moved_gb and self.seconds else None


def hidden_share(seconds: float, computing: float, moved: float, rate: float) -> float | None:
    """Which share of ``moved`` bytes' time at ``rate`` bytes a second went on behind ``computing`` seconds."""
    transfer = moved / rate
    return None if transfer <= 0 else max(0.0, min(1.0, 1 - (seconds - computing) / transfer))


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    options.add_argument("--models", nargs="*", help="of flux-schnell, flux-dev, sdxl-lightning")
    options.add_argument("--caps", nargs="*", type=float, default=list(CAPS_GB), help="gigabytes of the GPU to use")
    options.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    options.add_argument("--json", type=Path, help="write the rows to this file")
    options.add_argument("--limit", type=float, default=LIMIT_S, help="seconds after which it ends (600)")
    options.add_argument("--dry-run", action="store_true", help="tiny models on the CPU: no figure means anything")
    return options


def main() -> int:
    """Measure and print; 0 as well where there is nothing to measure on, 1 where GPU and CPU differ."""
    chosen = make_parser().parse_args()
    settle_environment()
    import torch

    if not chosen.dry_run and not torch.cuda.is_available():
        print("benchmarks.gpu: torch finds no CUDA GPU here, so there is nothing to measure (--dry-run tries the code)")
        return 0
    start_comfyui(cpu=chosen.dry_run)
    from benchmarks.random_models import SUBJECTS

    subjects = [subject for subject in SUBJECTS if not chosen.models or subject.name in chosen.models]
    rows: list[Row] = []
    agrees = True
    try:
        with limited(chosen.limit):
            agrees = compared(subjects[:1] if chosen.dry_run else subjects)
            for row in measurements(subjects, chosen):
                rows.append(row)
                print(line(row), flush=True)
    except TimeIsUp:
        print(
            f"benchmarks.gpu: {chosen.limit:g} s are over; the rest was not measured. Choose --models, --modes, --caps"
        )
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    return 0 if agrees else 1


def compared(subjects: list[Any]) -> bool:
    """Whether tiny models give the CPU's image on this device, streamed as well; a line for each."""
    import comfy.model_management as mm

    device, agree = mm.get_torch_device(), True
    for subject in subjects:
        bench = Bench(replace(subject, side=256, steps=2), tiny=True, filled_on="cpu")
        for mode in ("none", "stream"):
            difference = parity_difference(bench, device, mode)
            agree &= difference <= PARITY_TOLERANCE
            print(parity_line(subject.name, mode, difference), flush=True)
    return agree


def measurements(subjects: list[Any], chosen: argparse.Namespace) -> Iterator[Row]:
    """All rows of the table."""
    for subject in subjects:
        caps = chosen.caps
        if chosen.dry_run:
            subject, caps = replace(subject, side=256, steps=2), caps[:DRY_CAPS]
        yield from Bench(subject, tiny=chosen.dry_run).rows(chosen.modes, caps)


def line(row: Row) -> str:
    """A row of the table."""

    def figure(value: float | None, unit: str) -> str:
        return f"{value:7.2f} {unit}" if value is not None else f"{'-':>7} {unit}"

    cap = f"{row.cap_gb:g} GB" if row.cap_gb else "no cap"
    start = f"{row.model:15} {row.who:28} {cap:>7}"
    if row.failure:
        return f"{start}  {row.failure}"
    hidden = f"{row.hidden:4.0%} hidden" if row.hidden is not None else ""
    return (
        f"{start} {figure(row.seconds, 's')} {figure(row.peak_vram_gb, 'GB')} "
        f"{figure(row.planned_vram_gb, 'GB planned')} {figure(row.pinned_gb, 'GB pinned')} "
        f"{figure(row.rate_gb_s, 'GB/s')} {hidden}"
    )


class Bench:
    """One model, made once, in every way of running it."""

    def __init__(self, subject: Any, *, tiny: bool, filled_on: str | None = None) -> None:
        import comfy.model_management as mm
        import torch
        from neurolux.library.known_models import known_models

        from benchmarks.random_models import components

        self.subject, self.tiny, self.repeats = subject, tiny, 1 if tiny else REPEATS
        self.device: torch.device = mm.get_torch_device()
        self.dtype = torch.float32 if tiny else torch.bfloat16
        self.parts = components(subject, torch.device(filled_on or self.device), self.dtype, tiny=tiny)
        self.model = known_models().get(subject.name)
        self.number = 0
        self.computing: float | None = None

    def rows(self, modes: list[str], caps: list[float]) -> Iterator[Row]:
        """Ours without a cap, plain diffusers, ComfyUI's own; then every mode under every cap."""
        yield from (self.ours(mode, None) for mode in ("none", *(mode for mode in modes if mode != "none")))
        yield self.diffusers("plain diffusers, resident", offload=False)
        if not self.tiny:
            yield self.diffusers("plain diffusers, model offload", offload=True)
        yield self.comfyui(None)
        for cap in caps:
            if self.device.type == "cuda" and cap * 1e9 > total_memory(self.device):
                continue
            yield from (self.ours(mode, cap) for mode in modes)
            yield self.comfyui(cap)

    def prompt(self) -> str:
        """A new one each time."""
        self.number += 1
        return f"a red fox in the snow, number {self.number}"

    def measured(self, who: str, cap: float | None, draw: Callable[[], None], moved: Callable[[], int]) -> Row:
        """The middle of a few runs after one to warm up."""
        import comfy.model_management as mm
        import torch

        cuda = self.device.type == "cuda"
        try:
            draw()
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            times, before, pinned = [], moved(), 0
            for _ in range(self.repeats):
                started = time.perf_counter()
                draw()
                if cuda:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
                pinned = max(pinned, mm.TOTAL_PINNED_MEMORY)
        except Exception as error:  # what does not run under a cap is a row of the table, not the end of it
            message = str(error).split("\n")[0][:100]
            return Row(self.subject.name, who, cap, failure=f"{type(error).__name__}: {message}")
        seconds = statistics.median(times)
        bytes_moved = (moved() - before) / self.repeats
        peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
        hidden = self.hidden(seconds, bytes_moved)
        return Row(
            self.subject.name, who, cap, seconds, peak, None, pinned / 1e9, bytes_moved / 1e9, hidden
        )  # fmt: skip

    def hidden(self, seconds: float, moved: float) -> float | None:
        """The share of transfers that computing hid, where the time of computing alone is known."""
        from neurolux.memory.backends.choice import backend

        if self.computing is None or not moved:
            return None
        rate = backend().transfer_rate(self.device) or 10e9
        return hidden_share(seconds, self.computing, moved, rate)

    def ours(self, mode: str, cap: float | None) -> Row:
        """The pack's stages, placed by its plan for the cap."""
        with capped(self.device, cap):
            loaded = self.loaded(mode)

            def draw() -> None:
                self.drawn(loaded, self.prompt())

            def moved() -> int:
                return sum(part.residency.streamed_bytes for part in loaded.placement._patchers.values())

            row = self.measured(f"neurolux, {loaded.placement.mode}", cap, draw, moved)
            row = replace(row, planned_vram_gb=loaded.placement.plan.peak_vram / 1e9)
            loaded.placement.close()
            self.tidy()
        if mode == "none" and cap is None and row.seconds is not None:
            self.computing = row.seconds
            row = replace(row, hidden=None)
        return row

    def image(self, device: torch.device, mode: str) -> torch.Tensor:
        """One image on ``device``, the same prompt each time."""
        self.device = device
        loaded = self.loaded(mode)
        made = self.drawn(loaded, "a red fox in the snow").float().cpu()
        loaded.placement.close()
        self.tidy()
        return made

    def drawn(self, loaded: Any, prompt: str) -> torch.Tensor:
        """One image (1, H, W, 3) by the pack's stages."""
        import torch
        from neurolux.stages.decode import decode
        from neurolux.stages.prompts.encode import encode
        from neurolux.stages.sample import plan_sample, sample

        latent = {"samples": torch.zeros(1, self.parts["vae"].config.latent_channels, *self.latent_sides())}
        with torch.inference_mode():
            positive = encode(loaded, prompt)
            steps = 0 if loaded.model.step_distilled else self.subject.steps
            request = plan_sample(loaded.model, loaded.spec.variant, latent, seed=1, steps=steps)
            return decode(loaded, sample(loaded, request, positive, None))

    def latent_sides(self) -> tuple[int, int]:
        """Height and width of the latent."""
        return self.subject.side // 8, self.subject.side // 8

    def loaded(self, mode: str) -> Any:
        """What the pack's store would have made of files."""
        from neurolux.families.registry import family_of
        from neurolux.loading.handle import LoadSpec
        from neurolux.loading.loaded import LoadedPipeline
        from neurolux.memory.machine import this_machine
        from neurolux.memory.placement import Placement
        from neurolux.planning.planner import make_plan
        from neurolux.planning.records import Workload

        from benchmarks.random_models import pipeline

        spec = LoadSpec(self.subject.name, (), self.model.variant(0), "auto", mode)
        family = family_of(self.subject.family)
        shapes = {
            name: shape_of(part, family.components[name].part.blocks, self.tiny) for name, part in self.parts.items()
        }
        side = self.subject.side
        workload = Workload(side, side, 1, self.subject.steps)
        precision = "fp32" if self.tiny else "bf16"
        plan = make_plan(family.costs, shapes, this_machine(self.device), workload, precision, mode)
        pipe = pipeline(self.subject, self.parts, self.device)
        return LoadedPipeline(
            spec,
            self.model,
            pipe,
            shapes,
            Placement(self.parts, self.device, plan, family),
            workload,
            mode,
            0.0,
        )

    def diffusers(self, who: str, *, offload: bool) -> Row:
        """The diffusers pipeline over the same modules."""
        import torch
        from accelerate.hooks import remove_hook_from_module

        from benchmarks.random_models import pipeline

        pipe = pipeline(self.subject, self.parts, self.device)
        guidance = 3.5 if self.subject.guidance else 0.0

        def draw() -> None:
            with torch.inference_mode():
                generator = torch.Generator("cpu").manual_seed(1)
                pipe(
                    self.prompt(), width=self.subject.side, height=self.subject.side, guidance_scale=guidance,
                    num_inference_steps=self.subject.steps, generator=generator, output_type="pt",
                )  # fmt: skip

        try:
            if offload:
                pipe.enable_model_cpu_offload(device=self.device)
            else:
                pipe.to(self.device)
        except torch.OutOfMemoryError as error:
            row = Row(self.subject.name, who, None, failure=str(error).split("\n")[0])
        else:
            row = self.measured(who, None, draw, lambda: 0)
        for part in self.parts.values():
            remove_hook_from_module(part, recurse=True)
            part.to("cpu")
        self.tidy()
        return row

    def comfyui(self, cap: float | None) -> Row:
        """ComfyUI's own loader and sampler on the same denoiser: sampling alone, without encoding and decoding."""
        import comfy.sample
        import comfy.sd
        import torch

        who = "ComfyUI, sampling alone"
        if self.tiny:
            return Row(self.subject.name, who, cap, failure="its loader knows full sizes only")
        flux = self.subject.family == "flux"
        denoiser = self.parts["transformer" if flux else "unet"]
        with capped(self.device, cap), torch.inference_mode():
            patcher = comfy.sd.load_diffusion_model_state_dict(dict(denoiser.state_dict()))
            if patcher is None:
                return Row(self.subject.name, who, cap, failure="its loader does not recognize the weights")
            text = torch.randn(1, 256 if flux else 77, 4096 if flux else 2048)
            extra = {"pooled_output": torch.randn(1, 768 if flux else 1280), "guidance": 3.5}
            positive: Any = [[text, extra]]
            latent = torch.zeros(1, 16 if flux else 4, *self.latent_sides())
            noise = comfy.sample.prepare_noise(latent, 1)

            def draw() -> None:
                comfy.sample.sample(
                    patcher, noise, self.subject.steps, 1.0, "euler", "simple" if flux else "sgm_uniform",
                    positive, positive, latent, disable_pbar=True,
                )  # fmt: skip

            row = self.measured(who, cap, draw, lambda: 0)
            self.tidy()
        return replace(row, moved_gb=None, hidden=None)

    def tidy(self) -> None:
        """Nothing of the last measurement stays."""
        import comfy.model_management as mm
        from neurolux.stages.prompts.embedding_cache import embedding_cache

        mm.unload_all_models()
        embedding_cache.clear()
        gc.collect()
        mm.soft_empty_cache()


def shape_of(module: Any, lists: BlockLists, tiny: bool) -> Any:
    """A module as a plan counts it."""
    from neurolux.memory.units import split_into_blocks
    from neurolux.planning.records import ComponentShape

    size = 4 if tiny else 2
    rest, units = split_into_blocks(module, lists)
    blocks = tuple(unit.nbytes // size for unit in units)
    return ComponentShape(rest.nbytes // size + sum(blocks), blocks, "fp32" if tiny else "bf16")


def total_memory(device: Any) -> int:
    """Bytes of the GPU."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory


@contextmanager
def capped(device: Any, cap: float | None) -> Iterator[None]:
    """Let this process have ``cap`` gigabytes of the GPU.

    ComfyUI's memory manager asks the driver, so its answer is replaced too.
    """
    import comfy.model_management as mm
    import torch

    if cap is None or device.type != "cuda":
        yield
        return
    size = int(cap * 1e9)
    asked = mm.get_free_memory

    def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        if dev is not None and getattr(dev, "type", "") == "cpu":
            return asked(dev, torch_free_too)
        free = size - torch.cuda.memory_allocated(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free, unused) if torch_free_too else free

    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total_memory(device)), device)
    mm.get_free_memory = get_free_memory
    try:
        yield
    finally:
        mm.get_free_memory = asked
        torch.cuda.set_per_process_memory_fraction(1.0, device)


if __name__ == "__main__":
    sys.exit(main())
