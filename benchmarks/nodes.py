"""What our nodes cost over bare diffusers: the same weights, prompts, sizes and steps, in one process, in turn.

``python -m benchmarks.nodes``: the stages of the graph (encode, sample, decode) with their memory management, progress
and checks against one call of the diffusers pipeline. Each image has a new prompt, so both encode every time. On a
GPU, ours keeps everything resident (offload none), as bare diffusers does.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.in_process import REPO, settle_environment, start_comfyui

STARTER = REPO / "custom_nodes" / "neurolux" / "models" / "starter"
WARM_UP = 2


@dataclass(frozen=True)
class Overhead:
    """Milliseconds per image, the middle one (p50), and how much longer ours takes."""

    model: str
    images: int
    side: int
    steps: int
    diffusers_ms: float
    nodes_ms: float

    @property
    def ratio(self) -> float:
        """Ours by theirs."""
        return self.nodes_ms / self.diffusers_ms


def main() -> None:
    """Measure, print a table, and write it as JSON if asked to."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    options.add_argument("--images", type=int, default=15, help="images per model, after warming up")
    options.add_argument("--json", type=Path, help="write the results to this file")
    chosen = options.parse_args()
    settle_environment()
    import torch

    start_comfyui(cpu=not torch.cuda.is_available())
    rows = measure_all(chosen.images)
    print(report(rows))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([{**asdict(row), "ratio": row.ratio} for row in rows], indent=2))


def report(rows: list[Overhead]) -> str:
    """A table for people."""
    lines = [f"{'model':22} {'size':>5} {'steps':>5} {'diffusers':>12} {'nodes':>12} {'ratio':>7}   p50 per image"]
    lines += [
        f"{row.model:22} {row.side:5} {row.steps:5} {row.diffusers_ms:9.1f} ms {row.nodes_ms:9.1f} ms {row.ratio:7.3f}"
        for row in rows
    ]
    return "\n".join(lines)


def measure_all(images: int) -> list[Overhead]:
    """The starter model and one tiny model of each family."""
    from tests.tiny_models import write_tiny_models

    with tempfile.TemporaryDirectory() as root:
        folders = {"starter": STARTER, **write_tiny_models(Path(root))}
        return [measure(name, folder, images) for name, folder in folders.items() if (folder / "vae").is_dir()]


def measure(name: str, folder: Path, images: int) -> Overhead:
    """One model: ours and theirs alternate, so that a busy machine slows both."""
    import torch
    from neurolux.adapters.borrow import borrow
    from neurolux.library.folder_models import folder_model
    from neurolux.loading.store import load_handle, pipelines

    model = folder_model(folder)
    if model is None:
        raise SystemExit(f"{folder} is not a pipeline that the pack knows")
    handle = load_handle(model, (), precision="fp32", offload="none")
    side, steps = (256, 8) if name == "starter" else (128, 4)
    ours = our_images(handle, side, steps)
    theirs = their_images(folder, borrow(handle).device, side, steps)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for index in range(WARM_UP + images):
        for who, draw in (("theirs", theirs), ("ours", ours)):
            started = time.perf_counter()
            draw(index)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if index >= WARM_UP:
                times[who].append((time.perf_counter() - started) * 1000)
    pipelines.clear()
    gc.collect()
    middle = {who: statistics.median(taken) for who, taken in times.items()}
    return Overhead(name, images, side, steps, round(middle["theirs"], 2), round(middle["ours"], 2))


def our_images(handle: Any, side: int, steps: int) -> Callable[[int], None]:
    """An image by the stages that the nodes call."""
    import torch
    from neurolux.adapters.borrow import borrow
    from neurolux.stages.decode import decode
    from neurolux.stages.encode import encode
    from neurolux.stages.sample import plan_sample, sample

    channels = borrow(handle).pipe.vae.config.latent_channels
    latent = {"samples": torch.zeros(1, channels, side // 8, side // 8)}

    def draw(index: int) -> None:
        with torch.inference_mode():
            loaded = borrow(handle)
            positive = encode(loaded, prompt(index))
            request = plan_sample(handle.model, handle.spec.variant, latent, seed=index, steps=steps, guidance=0)
            decode(loaded, sample(loaded, request, positive, None))

    return draw


def their_images(folder: Path, device: Any, side: int, steps: int) -> Callable[[int], None]:
    """An image by the diffusers pipeline."""
    import torch
    from diffusers import DiffusionPipeline

    pipe: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    size = {"width": side, "height": side}

    def draw(index: int) -> None:
        with torch.inference_mode():
            generator = torch.Generator("cpu").manual_seed(index)
            pipe(
                prompt(index),
                **size,
                num_inference_steps=steps,
                guidance_scale=0,
                generator=generator,
                output_type="pt",
            )

    return draw


def prompt(index: int) -> str:
    """A text that was not there before, for the measured process."""
    return f"a red apple, number {index}"


if __name__ == "__main__":
    sys.exit(main())
