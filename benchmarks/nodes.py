"""What our nodes cost over plain diffusers: the same weights, prompts, sizes and steps, in one process, in turn.

``python -m benchmarks.nodes``: the stages of the graph (encode, sample, decode) with their memory management, progress
and checks against one call of the diffusers pipeline. Each image has a new prompt, so both encode every time. A model
that fills in or edits gets the same image (and mask) in both. On a GPU, ours keeps everything resident (offload none),
as plain diffusers does.
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


@dataclass(frozen=True)
class Overhead:
    """Milliseconds per image (the median) and how much longer ours takes."""

    model: str
    images: int
    side: int
    steps: int
    diffusers_ms: float
    nodes_ms: float

    @property
    def ratio(self) -> float:
        """Ours divided by theirs."""
        return self.nodes_ms / self.diffusers_ms


def main() -> None:
    """Measure, print a table, and write it as JSON if asked to."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    options.add_argument("--images", type=int, default=15, help="images per model, after warming up")
    options.add_argument("--warm-up", type=int, default=2, help="images per model that are not counted")
    options.add_argument("--models", nargs="*", help="of starter and the tiny models of the tests (all)")
    options.add_argument("--json", type=Path, help="write the results to this file")
    chosen = options.parse_args()
    settle_environment()
    import torch

    start_comfyui(cpu=not torch.cuda.is_available())
    rows = measure_all(chosen.images, chosen.warm_up, chosen.models)
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


def measure_all(images: int, warm_up: int, names: list[str] | None = None) -> list[Overhead]:
    """The starter model and one tiny model of each kind; of these only ``names``, if given."""
    from tests.tiny_models import WRITERS

    known = ("starter", *WRITERS)
    if unknown := set(names or ()) - set(known):
        raise SystemExit(f"no model is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    rows: list[Overhead] = []
    with tempfile.TemporaryDirectory() as root:
        for name in known if names is None else names:
            folder = WRITERS[name](Path(root, name)) if name in WRITERS else STARTER
            rows.append(measure(name, folder, images, warm_up))
    return rows


def measure(name: str, folder: Path, images: int, warm_up: int) -> Overhead:
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
    theirs = their_images(folder, borrow(handle).device, model.purpose, side, steps)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for index in range(warm_up + images):
        for who, draw in (("theirs", theirs), ("ours", ours)):
            started = time.perf_counter()
            draw(index)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if index >= warm_up:
                times[who].append((time.perf_counter() - started) * 1000)
    pipelines.clear()
    gc.collect()
    median = {who: statistics.median(taken) for who, taken in times.items()}
    return Overhead(name, images, side, steps, round(median["theirs"], 2), round(median["ours"], 2))


def our_images(handle: Any, side: int, steps: int) -> Callable[[int], None]:
    """An image by the stages that the nodes call."""
    import torch
    from neurolux.adapters.borrow import borrow
    from neurolux.stages.decode import decode
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.sample import plan_sample, sample

    latent = latent_for(borrow(handle), side)

    def draw(index: int) -> None:
        with torch.inference_mode():
            loaded = borrow(handle)
            positive = encode(loaded, prompt(index))
            request = plan_sample(handle.model, handle.spec.variant, latent, seed=index, steps=steps, guidance=0)
            decode(loaded, sample(loaded, request, positive, None))

    return draw


def latent_for(loaded: Any, side: int) -> dict[str, Any]:
    """What the graph of this model gives to Sample: an empty latent, or that of Encode Image."""
    import torch
    from neurolux.images.frames import plan_frame
    from neurolux.stages.image_encoding import encode_images

    if loaded.model.purpose == "any":
        channels = loaded.pipe.vae.config.latent_channels
        return {"samples": torch.zeros(1, channels, side // 8, side // 8)}
    image, mask = some_image(side), some_mask(side) if loaded.model.purpose == "fill" else None
    with torch.inference_mode():
        return encode_images(loaded, image, mask, plan_frame(loaded.model, (side, side), "crop"), 1)


def some_image(side: int) -> Any:
    """A grey gradient, (1, H, W, 3) in [0, 1]."""
    import torch

    return torch.linspace(0, 1, side).expand(1, 3, side, side).movedim(1, -1).contiguous()


def some_mask(side: int) -> Any:
    """The right half of the image, (1, H, W)."""
    import torch

    mask = torch.zeros(1, side, side)
    mask[:, :, side // 2 :] = 1
    return mask


def their_images(folder: Path, device: Any, purpose: str, side: int, steps: int) -> Callable[[int], None]:
    """An image by the diffusers pipeline."""
    import torch
    from diffusers import DiffusionPipeline

    pipe: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"width": side, "height": side}
    if purpose != "any":
        given["image"] = some_image(side).movedim(-1, 1)
    if purpose == "fill":
        given["mask_image"] = some_mask(side)[:, None]
    if purpose == "edit":
        given["max_area"] = side * side

    def draw(index: int) -> None:
        with torch.inference_mode():
            generator = torch.Generator("cpu").manual_seed(index)
            pipe(
                prompt=prompt(index),
                **given,
                num_inference_steps=steps,
                guidance_scale=0,
                generator=generator,
                output_type="pt",
            )

    return draw


def prompt(index: int) -> str:
    """A prompt that the measured process has not seen before."""
    return f"a red apple, number {index}"


if __name__ == "__main__":
    sys.exit(main())
