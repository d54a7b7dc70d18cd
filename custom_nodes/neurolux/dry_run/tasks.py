"""What is done with a loaded model in a dry run, by the pack's own stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
from PIL import Image

from ..adapters.motion.applied import motion_unet
from ..families.registry import family_of
from ..images.frames import Frame
from ..loading.handle import AppliedMotion
from ..loading.loaded import LoadedPipeline
from ..stages import tasks as stage_tasks
from ..stages import video
from ..stages.decode import decode
from ..stages.image_encoding import encode_images
from ..stages.prompts.encode import encode
from ..stages.sample import plan_sample, sample
from ..weights.stamps import FileStamp
from .beside import acquire_simulated_motion, controlled
from .records import Case
from .schedules import steady_class
from .tensors import no_modes

Note = Callable[[str], None]


def make_image(loaded: LoadedPipeline, case: Case, prompt: str, note: Note) -> None:
    """Encode, sample, decode; image to image encodes an image with the VAE before it samples."""
    model = loaded.model
    width = case.side or model.defaults.width
    height = case.side or model.defaults.height
    scale, channels = family_of(model.family).latent.scale, family_of(model.family).latent.channels
    with torch.no_grad():  # inference mode would hide what composite operations allocate inside
        positive = encode(loaded, prompt)
        note("encode")
        shape = (1, channels, height // scale, width // scale)
        if case.task == "fill":
            fill_image(loaded, case, positive, note, (width, height))
            return
        if case.task == "image-to-image":
            encode_image(loaded, case, prompt, note)
            request = plan_sample(model, loaded.spec.variant, {"samples": torch.empty(shape)}, 1, 0, case.guidance, 0.5)
            request = replace(request, steps=2 * case.steps, running=case.steps)
        else:
            with no_modes():
                request = plan_sample(
                    model, loaded.spec.variant, {"samples": torch.zeros(shape)}, 1, 0, case.guidance
                )  # fmt: skip
            request = replace(request, steps=case.steps, running=case.steps)
        made = sample(loaded, request, positive, None)
        note("sample")
        decode(loaded, made)
        note("decode")


def fill_image(loaded: LoadedPipeline, case: Case, positive: Any, note: Note, size: tuple[int, int]) -> None:
    """Sample and decode, with an image and a mask that have no numbers."""
    width, height = size
    scale, channels = family_of(loaded.model.family).latent.scale, family_of(loaded.model.family).latent.channels
    latent = {
        "samples": torch.empty(1, channels, height // scale, width // scale),
        "image": torch.empty(1, height, width, 3),
        "noise_mask": torch.empty(1, 1, height, width),
    }

    def blank(pixels: Any) -> Image.Image:
        return Image.new("RGB", size)

    with (
        mock.patch.object(stage_tasks, "as_image", blank),
        mock.patch.object(stage_tasks, "mask_warnings", return_value=[]),
    ):
        request = plan_sample(loaded.model, loaded.spec.variant, latent, 1, 0, case.guidance)
        made = sample(loaded, replace(request, steps=case.steps, running=case.steps), positive, None)
    note("sample")
    decode(loaded, made)
    note("decode")


def make_controlled_image(loaded: LoadedPipeline, case: Case, prompt: str, note: Note) -> None:
    """Make an image that a ControlNet guides."""
    with controlled(loaded, case.side or loaded.model.defaults.width):
        make_image(loaded, case, prompt, note)


def encode_image(loaded: LoadedPipeline, case: Case, prompt: str, note: Note) -> None:
    """Encode an image with the VAE."""
    side = case.side or loaded.model.defaults.width
    box = (0, 0, side, side)
    frame = Frame((side, side), (side, side), box, box)
    with torch.no_grad():
        encode_images(loaded, torch.empty(1, side, side, 3), None, frame)
    note("encode an image")


def encode_prompt(loaded: LoadedPipeline, case: Case, prompt: str, note: Note) -> None:
    """Encode a prompt."""
    with torch.no_grad():
        encode(loaded, prompt)
    note("encode")


def make_video(loaded: LoadedPipeline, case: Case, prompt: str, note: Note) -> None:
    """Encode and sample the frames of a video."""
    model = loaded.model
    file = FileStamp("a motion adapter", Path("motion.safetensors"), 0, 0)
    motion = AppliedMotion(file, "EulerDiscreteScheduler", {}, case.steps, model.defaults.guidance_scale)
    acquire_simulated_motion(loaded, file)
    side = case.side or model.defaults.width
    with torch.no_grad():
        positive = encode(loaded, prompt)
        note("encode")
        with no_modes():
            space = family_of(model.family).latent
            latent = {"samples": torch.zeros(1, space.channels, side // space.scale, side // space.scale)}
            request = plan_sample(model, None, latent, 1, case.steps, case.guidance)
        steady = mock.patch.object(diffusers, "EulerDiscreteScheduler", steady_class(diffusers.EulerDiscreteScheduler))
        with steady, mock.patch.object(video, "motion_unet", joined_unet):
            video.sample_video(loaded, video.VideoRequest(motion, case.frames, request), positive, None)
    note("sample")


def joined_unet(unet: Any, adapter: Any) -> Any:
    """``motion_unet``, which builds modules and moves nothing."""
    with no_modes():
        return motion_unet(unet, adapter)


WORK: dict[str, Callable[[LoadedPipeline, Case, str, Note], None]] = {
    "text-to-image": make_image,
    "image-to-image": make_image,
    "fill": make_image,
    "controlnet": make_controlled_image,
    "encode": encode_image,
    "prompt": encode_prompt,
    "video": make_video,
    "load": lambda loaded, case, prompt, note: None,
}
