"""Composes a bank of training scenes and encodes it; resumes shard by shard.

The encoder is a written linear transform, so this is composing and one matrix product per shard. A shard is a thousand
scenes; another ``--seed`` adds other scenes to the same bank.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from training import checkpoint
from training.block_transform import encode
from training.paths import work_dir
from training.prompts import UNSEEN
from training.scenes import Scene, draw, meaning, random_composed_scene, random_placed_scene
from training.train_vae import CHECKPOINT as VAE_CHECKPOINT

SHARD = 1000
MIXTURES = {"composed": random_composed_scene, "placed": random_placed_scene}
_HELD_OUT = frozenset(meaning(case.scene) for case in UNSEEN)


def random_scene(mixture: str, rng: np.random.Generator) -> Scene:
    """A scene of a mixture, never one that looks like an unseen prompt."""
    scene = MIXTURES[mixture](rng)
    while meaning(scene) in _HELD_OUT:
        scene = MIXTURES[mixture](rng)
    return scene


def scene_of(mixture: str, seed: int, index: int) -> tuple[Scene, np.random.Generator]:
    """Scene ``index`` of a bank and the generator that goes on to draw its jitter."""
    rng = np.random.default_rng((seed, index))
    return random_scene(mixture, rng), rng


def load_sprites() -> dict[str, np.ndarray]:
    """What ``training.render`` wrote: RGBA uint8 sprites by name (``flat/cat``, ``shape/star``)."""
    return dict(np.load(work_dir() / "subjects.npz"))


def load_transform() -> torch.Tensor:
    """The block transform (16, 192) that ``training.train_vae`` fitted."""
    state = checkpoint.load(work_dir() / VAE_CHECKPOINT)
    if state is None:
        raise FileNotFoundError(f"{work_dir() / VAE_CHECKPOINT} is missing; run python -m training.train_vae first")
    return state["transform"]


def as_batch(drawn: list[np.ndarray]) -> torch.Tensor:
    """Images uint8 (h, w, 3) as floats (n, 3, h, w) on [-1, 1]."""
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1


def bank_dir(mixture: str) -> Path:
    """The folder of the latent shards of a mixture."""
    folder = work_dir() / f"bank-{mixture}"
    folder.mkdir(exist_ok=True)
    return folder


def main() -> None:
    """Write the latents of ``--count`` scenes of 128x128 pixels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30000, help="scenes, rounded up to thousands")
    parser.add_argument("--mixture", choices=sorted(MIXTURES), default="composed")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()

    sprites, transform = load_sprites(), load_transform()
    for first in tqdm(range(0, options.count, SHARD), desc="encode", mininterval=5):
        path = bank_dir(options.mixture) / f"{options.seed}-{first:07d}.npy"
        if path.exists():
            continue
        drawn = []
        for index in range(first, first + SHARD):
            scene, rng = scene_of(options.mixture, options.seed, index)
            drawn.append(draw(scene, sprites, rng=rng))
        partial = path.with_suffix(".partial.npy")
        np.save(partial, encode(transform, as_batch(drawn)).half().numpy())
        partial.rename(path)


if __name__ == "__main__":
    main()
