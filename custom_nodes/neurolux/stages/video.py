"""A video, by diffusers' own AnimateDiff pipelines over the loaded model's components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..adapters.motion.applied import LoadedMotion, acquire_motion, motion_unet
from ..errors import InvalidParameter
from ..families.parts.placed import derived
from ..families.registry import family_of, pipeline_class
from ..images.pixels import check_finite
from ..loading.compiled import run_compiled
from ..loading.handle import AppliedMotion, PipelineHandle
from ..loading.loaded import LoadedPipeline
from ..loading.replanning import fit
from ..loading.working_memory import run_stage, sampling_memory
from .noise import noise_drawn
from .prompts.conditioning import Conditioning
from .sample import (
    REMEDY,
    SampleProgress,
    SampleRequest,
    generator_of,
    needs_negative,
    plan_sample,
    prompt_arguments,
)


@dataclass(frozen=True)
class VideoRequest:
    """A video as the model will run it: every default filled in, every value checked."""

    motion: AppliedMotion
    frames: int
    frame: SampleRequest
    """Size, seed, steps and guidance; the same for all frames."""


def plan_video(
    handle: PipelineHandle, latent: Mapping[str, Any], frames: int, seed: int, steps: int = 0, guidance: float = -1.0
) -> VideoRequest:
    """Fill in the adapter's defaults (``steps`` 0, ``guidance`` below 0) and check all; raises InvalidParameter."""
    motion = check_motion(handle)
    steps, guidance = steps or motion.steps, motion.guidance if guidance < 0 else guidance
    if motion.only_steps is not None and steps != motion.only_steps:
        raise InvalidParameter(
            "num_inference_steps",
            f"num_inference_steps {steps} does not match {motion.file.name}, which was made for {motion.only_steps}; "
            f"set steps to {motion.only_steps} (or 0), or choose another motion adapter",
        )
    frame = plan_sample(handle.model, handle.model.variant(steps), latent, seed, steps, guidance)
    if frame.count != 1 or frame.task != "text-to-image":
        raise InvalidParameter("latent", "a video begins with one Empty Latent; frames says how many images it has")
    return VideoRequest(motion, frames, frame)


def sample_video(
    loaded: LoadedPipeline, video: VideoRequest, positive: Conditioning, negative: Conditioning | None
) -> torch.Tensor:
    """The frames of one video as raw VAE latents (frames, C, h, w), float32 on the CPU.

    The noise is drawn as for an image. Raises InvalidParameter for more frames than the adapter was made for.
    """
    motion, frames, request = video.motion, video.frames, video.frame
    adapter = acquire_motion(motion, loaded)
    if frames > adapter.most_frames:
        raise InvalidParameter(
            "num_frames",
            f"num_frames {frames} is more than the {adapter.most_frames} that {motion.file.name} was made for; "
            f"use {adapter.most_frames} or fewer",
        )
    prompt = prompt_arguments(loaded, request, positive, negative)
    pipe = video_pipeline(loaded, motion, adapter)
    progress = VideoProgress(loaded, request, frames)
    stage = [loaded.denoiser_name, *(["vae"] if progress.needs_vae else [])]
    passes = 2 if needs_negative(loaded.model, request.guidance) else 1
    fit(loaded, request.width, request.height, adapter.shape, passes=passes, frames=frames, encodes=None)

    def work() -> torch.Tensor:
        needed = sampling_memory(loaded, request.width, request.height, passes=passes, frames=frames)
        with loaded.placement.stage(stage, needed, beside=[adapter.patcher]), torch.no_grad():
            return run_compiled(loaded, lambda: denoise(pipe, request, prompt, frames, progress))

    try:
        latents = run_stage(loaded, f"sampling {frames} frames of {request.width}x{request.height}", REMEDY, work)
    finally:
        pipe.on_first_latents = None
    vae: Any = loaded.pipe.vae
    latents = latents[0].movedim(1, 0).to(vae.dtype)
    made = (1 / vae.config.scaling_factor * latents).float().cpu()  # as the pipelines' decode_latents
    check_finite(made, f"the sampled latents of {loaded.model.name}")
    return made


def check_motion(handle: PipelineHandle) -> AppliedMotion:
    """The handle's motion adapter. Raises InvalidParameter where there is none, or what it cannot be used with."""
    if handle.motion is None:
        raise InvalidParameter("pipeline", "a video needs a motion adapter; put Apply Motion before Sample Video")
    if handle.controls:
        raise InvalidParameter("pipeline", "ControlNets do not act on videos yet; take Apply ControlNet out")
    return handle.motion


def video_pipeline(loaded: LoadedPipeline, motion: AppliedMotion, adapter: LoadedMotion) -> Any:
    """The AnimateDiff pipeline over the loaded components, with the scheduler that the adapter wants."""
    import diffusers

    family = family_of(loaded.model.family)
    wanted = pipeline_class(loaded.model, "video")
    own: Any = loaded.pipe.scheduler
    scheduler = getattr(diffusers, motion.scheduler).from_config(dict(own.config), **motion.schedule)
    unet = motion_unet(loaded.denoiser, adapter.module)
    return derived(
        loaded.pipe,
        wanted,
        family.pipeline_options(loaded.pipe.config),
        unet=unet,
        motion_adapter=adapter.module,
        scheduler=scheduler,
    )


def denoise(
    pipe: Any, request: SampleRequest, prompt: Mapping[str, Any], frames: int, progress: VideoProgress
) -> torch.Tensor:
    """Denoise; latents (1, C, frames, h, w) as the pipeline gives them."""
    pipe.on_first_latents = partial(progress.start, 0)
    with noise_drawn(pipe):
        return pipe(
            **prompt,
            num_frames=frames,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=generator_of(request, 0),
            output_type="latent",
            return_dict=False,
            callback_on_step_end=progress.step,
        )[0]


class VideoProgress(SampleProgress):
    """The same for a video; the preview shows its middle frame."""

    def __init__(self, loaded: LoadedPipeline, request: SampleRequest, frames: int) -> None:
        super().__init__(loaded, request)
        self._frame = frames // 2

    def start(self, index: int, latents: torch.Tensor) -> None:
        """The video begins from ``latents`` (1, C, frames, h, w)."""
        super().start(index, latents[:, :, self._frame])

    def step(self, pipe: Any, step: int, timestep: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """diffusers' ``callback_on_step_end``; changes nothing."""
        return super().step(pipe, step, timestep, {"latents": tensors["latents"][:, :, self._frame]})
