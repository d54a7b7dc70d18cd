"""Word embeddings that start from what the words look like.

A word learned from nothing needs thousands of images before it binds. Here the row of each subject begins as its
image's coordinates among all subjects (principal components of the latents, both styles together), so the
transformer learns one map from coordinates to images, shared by all words, instead of a list of images.
"""

from __future__ import annotations

import torch

from training.block_transform import encode
from training.encode import as_batch, load_sprites, load_transform
from training.models import TEXT_WIDTH
from training.scenes import Item, Scene, draw
from training.tokenizer import token_ids
from training.vocabulary import SHAPES, STYLES, SUBJECTS

LOOKS = 224  # dimensions that hold the look of a subject; the rest tell plain words apart


def looks() -> tuple[list[str], torch.Tensor]:
    """Subjects and shapes with their coordinates (n, LOOKS), unit mean square."""
    sprites = load_sprites()
    transform = load_transform()
    names = [subject.name for subject in SUBJECTS] + list(SHAPES)
    per_style = [
        encode(transform, as_batch([draw(Scene((Item(name),), style=style), sprites) for name in names])).flatten(1)
        for style in STYLES
    ]
    joint = torch.cat(per_style, dim=1)
    left, sizes, _ = torch.linalg.svd(joint - joint.mean(0), full_matrices=False)
    # The square root lifts the many small differences between subjects towards the few great ones.
    coordinates = left[:, :LOOKS] * sizes[:LOOKS].sqrt()
    return names, coordinates / coordinates.square().mean().sqrt()


def initial_codes(seed: int) -> torch.Tensor:
    """Rows for every token (tokens, TEXT_WIDTH)."""
    generator = torch.Generator().manual_seed(seed)
    ids = token_ids()
    codes = torch.zeros(len(ids), TEXT_WIDTH)
    plain = TEXT_WIDTH - LOOKS
    codes[:, LOOKS:] = torch.randn(len(ids), plain, generator=generator) * (TEXT_WIDTH / plain) ** 0.5
    names, coordinates = looks()
    for name, row in zip(names, coordinates, strict=True):
        codes[ids[name], :LOOKS] = row
        codes[ids[name], LOOKS:] *= 0.2
    codes[ids["<pad>"]] = 0
    return codes
