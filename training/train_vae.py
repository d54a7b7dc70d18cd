"""Trains the autoencoder's decoder on composited emoji; resumes where it stopped.

The encoder is written, not trained (``training.block_transform``), so the latents are fixed from the first second
and the transformer may train at the same time. Loss: L1 + L2 + L1 of the image's gradients, on crops of 64x64 and,
every fourth step, whole images of 128x128 that settle the group norms.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional
from tqdm import tqdm

from training import checkpoint
from training.block_transform import encode, fit, start_decoder, write_encoder
from training.compositing import paste, scale
from training.models import build_vae
from training.paths import work_dir
from training.vocabulary import COLOURS, GROUNDS

CHECKPOINT = "vae.pt"
LOG = "vae.jsonl"


def random_image(sprites: np.ndarray, rng: np.random.Generator, side: int) -> np.ndarray:
    """A random composition, uint8 (side, side, 3): plain or sloping ground, one to three emoji of any size."""
    palette = np.array([*GROUNDS.values(), *COLOURS.values()], dtype=np.float32)
    canvas = np.empty((side, side, 3), dtype=np.float32)
    canvas[:] = palette[rng.integers(len(palette))]
    if rng.random() < 0.25:
        slope = rng.random() * np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
        other = rng.uniform(0, 255, 3).astype(np.float32)
        canvas += (slope if rng.random() < 0.5 else slope.transpose(1, 0, 2)) * (other - canvas)
    for _ in range(rng.choice([1, 1, 2, 3])):
        size = int(rng.integers(max(24, side // 3), 132))
        sprite = scale(sprites[rng.integers(len(sprites))], size)
        x, y = rng.integers(-size // 2, side - size // 2, 2)
        paste(canvas, sprite, int(x), int(y))
    return np.clip(canvas, 0, 255).astype(np.uint8)


def reconstruction_loss(result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + L2 + gradients, all on [-1, 1]."""
    wide = (result.diff(dim=3) - target.diff(dim=3)).abs().mean()
    tall = (result.diff(dim=2) - target.diff(dim=2)).abs().mean()
    return functional.l1_loss(result, target) + functional.mse_loss(result, target) + wide + tall


def _images(sprites: np.ndarray, rng: np.random.Generator, count: int, side: int) -> torch.Tensor:
    batch = np.stack([random_image(sprites, rng, side) for _ in range(count)])
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1


def _fresh(sprites: np.ndarray, seed: int) -> tuple[AutoencoderKL, torch.Tensor]:
    """A new autoencoder with its written encoder and smooth decoder, and the block transform."""
    transform = fit(_images(sprites, np.random.default_rng(seed), 512, 128))
    vae = build_vae()
    write_encoder(vae, transform)
    start_decoder(vae, transform)
    return vae, transform


def main() -> None:
    """Train for ``--steps`` steps in all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="in all, those already done included")
    parser.add_argument("--batch", type=int, default=16, help="crops of 64x64 a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, default=0.03, help="spread of the noise added to latents")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    sprites = np.load(work_dir() / "all.npy", mmap_mode="r")
    path, first = work_dir() / CHECKPOINT, 0
    state = checkpoint.load(path, options.device)
    if state is None:
        vae, transform = _fresh(sprites, options.seed)
    else:
        vae, transform, first = build_vae(), state["transform"], state["step"]
        vae.load_state_dict(state["vae"])
    vae = vae.to(options.device, memory_format=torch.channels_last)
    transform = transform.to(options.device)
    vae.encoder.requires_grad_(False)
    decoder = vae.decoder.train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=1e-3)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    else:
        _save(path, vae, transform, optimizer, 0)

    bar = tqdm(range(first, options.steps), initial=first, total=options.steps, desc="decoder", mininterval=5)
    started = time.time()
    for step in bar:
        rng = np.random.default_rng((options.seed, step))
        side, count = (128, max(1, options.batch // 4)) if step % 4 == 3 else (64, options.batch)
        target = _images(sprites, rng, count, side).to(options.device, memory_format=torch.channels_last)
        latents = encode(transform, target)
        latents += options.noise * torch.randn_like(latents)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * checkpoint.one_cycle(step / options.steps)
        with torch.autocast(transform.device.type, torch.bfloat16):
            result = decoder(latents.contiguous(memory_format=torch.channels_last)).float()
        loss = reconstruction_loss(result, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            figure = functional.l1_loss(result, target).item()
            bar.set_postfix(l1=f"{figure:.4f}")
            with (work_dir() / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step, "seconds": round(time.time() - started, 1), "l1": figure}) + "\n")
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            _save(path, vae, transform, optimizer, step + 1)


def _save(path: Path, vae: AutoencoderKL, transform: torch.Tensor, optimizer: torch.optim.Optimizer, step: int) -> None:
    checkpoint.save(
        path,
        {
            "vae": {name: weight.contiguous() for name, weight in vae.state_dict().items()},
            "transform": transform.cpu(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        },
    )


if __name__ == "__main__":
    main()
