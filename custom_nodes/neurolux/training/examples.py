"""Images and captions as the denoiser sees them, made once: the VAE and the text encoders then leave the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..loading.loaded import LoadedPipeline
from ..loading.replanning import fit
from ..loading.working_memory import decoding_memory, run_stage
from ..memory.vae_tiling import tiling
from ..stages.image_encoding import encode_image, from_raw
from ..stages.prompts.check import truncation_warnings
from ..stages.prompts.encode import encode, named_tensors
from .image_files import open_files
from .image_set import TrainingSet, fitted, named, spoken
from .loss import Example

REMEDY = "Train with a smaller resolution, or choose a leaner precision (int8, nf4) on the loader."
Phase = Callable[[str], None]


def make_examples(
    loaded: LoadedPipeline, images: TrainingSet, trigger: str, side: int, phase: Phase
) -> tuple[list[Example], list[str]]:
    """Every image with its caption, and what the user should know of them. Raises InvalidParameter.

    The middle of the VAE's distribution is taken, so that an image is the same in every step.
    """
    captions = [spoken(image, trigger) for image in images.images]
    texts = encode_captions(loaded, captions, phase)
    encoded = encode_images(loaded, images, side, phase)
    examples = [
        Example(image.latent, texts[caption], original=image.original, crop=image.crop)
        for caption, image in zip(captions, encoded, strict=True)
    ]
    return examples, example_warnings(loaded, images, captions, side)


def encode_captions(loaded: LoadedPipeline, captions: list[str], phase: Phase) -> dict[str, dict[str, torch.Tensor]]:
    """The encoder's tensors by caption; on the CPU."""
    found = {}
    distinct = list(dict.fromkeys(captions))
    for number, caption in enumerate(distinct, start=1):
        phase(f"Encoding caption {number} of {len(distinct)}")
        tensors = named_tensors(loaded, encode(loaded, caption, literal=True), "caption")
        # Copies: what ComfyUI's nodes encoded before is of inference mode, which a backward pass cannot keep.
        found[caption] = {name: value.clone() for name, value in tensors.items()}
    return found


@dataclass(frozen=True)
class EncodedImage:
    """An image as a latent (1, C, h, w) that the denoiser takes, on the CPU, and how it was cut."""

    latent: torch.Tensor
    original: tuple[int, int]
    crop: tuple[int, int]


def encode_images(loaded: LoadedPipeline, images: TrainingSet, side: int, phase: Phase) -> list[EncodedImage]:
    """Every image, in order."""
    fit(loaded, side, side)

    def work() -> list[EncodedImage]:
        found = []
        placed = loaded.placement.stage(["vae"], decoding_memory(loaded, side, side))
        tiles = tiling(loaded.pipe.vae, loaded.placement.plan.vae_tile, loaded.pipe.vae_scale_factor)
        with open_files(images.label, images.path) as files, placed, tiles, torch.no_grad():
            for number, image in enumerate(images.images, start=1):
                phase(f"Encoding image {number} of {len(images.images)}")
                cut = fitted(images.label, image, files.read(image.name), side)
                raw = encode_image(loaded, torch.from_numpy(cut.pixels)[None])
                found.append(EncodedImage(from_raw(loaded, raw).cpu(), cut.original, cut.crop))
        return found

    return run_stage(loaded, f"encoding images of {side}x{side}", REMEDY, work)


def example_warnings(loaded: LoadedPipeline, images: TrainingSet, captions: list[str], side: int) -> list[str]:
    """What the user should know before the LoRA disappoints."""
    said = images.warnings()
    small = [image.name for image in images.images if min(image.size) < side]
    if small:
        said.append(f"enlarged, because a side is shorter than {side} pixels: {named(small)}")
    cut = sum(bool(truncation_warnings(loaded, caption)) for caption in dict.fromkeys(captions))
    if cut:
        limit = loaded.model.max_sequence_length
        said.append(f"{cut} captions are longer than the {limit} tokens that {loaded.model.name} reads: cut off there")
    return said
