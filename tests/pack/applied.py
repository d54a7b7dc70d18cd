"""Images under LoRAs and ControlNets on tiny models: the pack's, and what diffusers alone makes of the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from tests.pack import pipelines
from tests.pack.pipelines import LATENT, PROMPT, borrow

if TYPE_CHECKING:
    from neurolux.loading.handle import PipelineHandle

STEPS = 4
SAMPLED: dict[str, dict[str, Any]] = {
    "tiny-flux-dev": {"max_sequence_length": 512, "guidance_scale": 3.5},
    "tiny-sdxl": {"guidance_scale": 5.0},
}


def make_image(handle: PipelineHandle, count: int = 1) -> torch.Tensor:
    """Images (count, H, W, 3), made as the nodes make them."""
    from neurolux.stages.decode import decode
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.sample import plan_sample, sample

    with torch.inference_mode():  # as ComfyUI runs nodes
        loaded = borrow(handle)
        latent = {"samples": LATENT["samples"].repeat(count, 1, 1, 1)}
        request = plan_sample(handle.model, handle.spec.variant, latent, seed=7, steps=STEPS)
        return decode(loaded, sample(loaded, request, encode(loaded, PROMPT), None))


def with_loras(handle: PipelineHandle, *loras: tuple[Path, float, float]) -> PipelineHandle:
    """``handle`` with LoRAs (file, strength, strength in the text encoders)."""
    from neurolux.adapters.lora.applied import with_lora
    from neurolux.loading.handle import AppliedLora
    from neurolux.weights.stamps import stamp_file

    for path, strength, text_strength in loras:
        added = AppliedLora(stamp_file(path.name, path), strength, text_strength)
        handle = replace(handle, loras=with_lora(handle.loras, added))
    return handle


def with_controls(handle: PipelineHandle, *controls: dict[str, Any]) -> PipelineHandle:
    """``handle`` with ControlNets at full strength, which follow a drawing unless told otherwise."""
    return pipelines.with_controls(handle, *({"strength": 1.0, "image": drawing(), **one} for one in controls))


def drawing(seed: int = 0, count: int = 1, height: int = 128, width: int = 128) -> torch.Tensor:
    """Random images of 8 bits a channel, as ComfyUI's IMAGE."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator) / 255


def as_pil(image: torch.Tensor) -> Image.Image:
    """The first of a batch."""
    return Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy())


def plain(pipe: Any, model: str, **arguments: Any) -> torch.Tensor:
    """What diffusers alone makes of it, with weights at aligned addresses (products round by that)."""
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            for name, weight in component.named_parameters():
                if "lora_" not in name:
                    weight.data = weight.data.clone()
    made = pipe(
        prompt=PROMPT, width=128, height=128, num_inference_steps=STEPS, output_type="pt",
        generator=torch.Generator().manual_seed(7), **SAMPLED[model], **arguments,
    ).images  # fmt: skip
    return made.permute(0, 2, 3, 1)
