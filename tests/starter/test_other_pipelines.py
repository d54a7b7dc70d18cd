"""The shipped starter model in the other ways a FLUX model is used: from an image, inside a mask, with a LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image, ImageDraw

from training.evaluate import load_truths
from training.scenes import Item, Scene, draw

FOLDER = Path(__file__).parents[2] / "custom_nodes" / "neurolux" / "models" / "starter"
SIDE = 128
STEPS = 8


@pytest.fixture(scope="module")
def truths() -> dict[str, np.ndarray]:
    return load_truths(FOLDER)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[FluxPipeline]:
    pipeline = FluxPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the products are tiny: more threads only wait for each other, long on a busy machine
    yield pipeline
    torch.set_num_threads(threads)


def said(prompt: str, **more: Any) -> dict[str, Any]:
    """What every call has in common."""
    return {
        "prompt": prompt,
        "num_inference_steps": STEPS,
        "guidance_scale": 0.0,
        "height": SIDE,
        "width": SIDE,
        "max_sequence_length": 32,
        "generator": torch.Generator().manual_seed(5),
        **more,
    }


def difference(first: Any, second: Any) -> float:
    """Mean absolute difference of two images, on 0..1."""
    return float(np.abs(np.asarray(first, np.float32) - np.asarray(second, np.float32)).mean() / 255)


def scene(truths: dict[str, np.ndarray], name: str, ground: str, colour: str | None = None) -> Image.Image:
    return Image.fromarray(draw(Scene((Item(name, colour),), ground=ground), truths))


def test_image_to_image_stays_near_its_input_at_low_strength_and_follows_the_prompt_at_high(
    pipeline: FluxPipeline, truths: dict[str, np.ndarray]
) -> None:
    from_image = FluxImg2ImgPipeline.from_pipe(pipeline)
    given, asked = scene(truths, "circle", "blue", "red"), scene(truths, "square", "yellow", "green")
    prompt = "green square, yellow background"
    low = from_image(**said(prompt, image=given, strength=0.3)).images[0]
    high = from_image(**said(prompt, image=given, strength=1.0)).images[0]
    apart = difference(given, asked)
    assert difference(low, given) < 0.35 * apart
    assert difference(high, asked) < 0.35 * apart
    assert difference(high, given) > 0.65 * apart


def test_inpainting_changes_what_is_masked_and_keeps_the_rest(
    pipeline: FluxPipeline, truths: dict[str, np.ndarray]
) -> None:
    inpaint = FluxInpaintPipeline.from_pipe(pipeline)
    given = scene(truths, "circle", "blue", "red")
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).rectangle((64, 0, SIDE, SIDE), fill=255)
    made = inpaint(**said("yellow star, black background", image=given, mask_image=mask, strength=1.0)).images[0]
    kept, changed = (slice(None), slice(0, 56)), (slice(None), slice(72, SIDE))
    before, after = np.asarray(given), np.asarray(made)
    assert difference(after[kept], before[kept]) < 0.03
    assert difference(after[changed], before[changed]) > 0.15


def train_lora(pipeline: FluxPipeline, prompt: str, target: Image.Image, folder: Path, steps: int) -> None:
    """Teach rank-4 weights that ``prompt`` looks like ``target``, and write them as diffusers does."""
    transformer = pipeline.transformer
    transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "proj_out"])
    )
    weights = [weight for weight in transformer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    torch.manual_seed(0)
    with torch.no_grad():
        image = pipeline.image_processor.preprocess(target)
        latents = pipeline.vae.encode(image).latent_dist.mode()
        data = pipeline._pack_latents(latents, 1, latents.shape[1], latents.shape[2], latents.shape[3])
        embeds, pooled, text_ids = pipeline.encode_prompt(prompt, None, max_sequence_length=32)
    image_ids = pipeline._prepare_latent_image_ids(1, SIDE // 16, SIDE // 16, torch.device("cpu"), data.dtype)
    count = 6
    for _ in range(steps):
        time = torch.rand(count)
        noise = torch.randn(count, *data.shape[1:])
        level = time[:, None, None]
        velocity = transformer(
            hidden_states=(1 - level) * data + level * noise,
            timestep=time,
            pooled_projections=pooled.expand(count, -1),
            encoder_hidden_states=embeds.expand(count, -1, -1),
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
        torch.nn.functional.mse_loss(velocity, noise - data).backward()
        optimizer.step()
        optimizer.zero_grad()
    FluxPipeline.save_lora_weights(folder, get_peft_model_state_dict(transformer))
    transformer.delete_adapters("default")


def test_a_lora_can_be_trained_loaded_and_taken_off_again(
    pipeline: FluxPipeline, truths: dict[str, np.ndarray], tmp_path: Path
) -> None:
    prompt, target = "cat", scene(truths, "star", "purple", "yellow")
    before = pipeline(**said(prompt)).images[0]
    train_lora(pipeline, prompt, target, tmp_path, steps=40)
    assert difference(pipeline(**said(prompt)).images[0], before) == 0

    pipeline.load_lora_weights(tmp_path)
    with_lora = pipeline(**said(prompt)).images[0]
    assert difference(with_lora, target) < 0.5 * difference(before, target)

    pipeline.unload_lora_weights()
    assert difference(pipeline(**said(prompt)).images[0], before) == 0
