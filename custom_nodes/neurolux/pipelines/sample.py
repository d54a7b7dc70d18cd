"""Denoise, by the diffusers pipeline itself; what is ours is the checks, the progress and the previews."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..catalog import Model
from ..errors import InvalidParameter
from .controlnet import ControlRun
from .decode import to_raw
from .encode import Conditioning, embeddings, encode, is_empty
from .latent import LATENT_SCALE
from .memory import run_stage, sample_room
from .preview import Preview, has_small_vae, make_previewer, predicted_clean
from .registry import LoadedPipeline, LoadSpec

SEEDS = 2**64
REMEDY = "Use a smaller width and height, or a leaner offload (stream or sequential) on the loader."


@dataclass(frozen=True)
class SampleRequest:
    """A request as the model will run it: every default filled in, every value checked."""

    width: int
    height: int
    count: int
    seed: int
    steps: int
    guidance: float


def plan_sample(
    model: Model, variant: int | None, latent: Mapping[str, Any], seed: int, steps: int, guidance: float
) -> SampleRequest:
    """Fill in defaults (``steps`` 0, ``guidance`` below 0) and check all; raises InvalidParameter."""
    samples: torch.Tensor = latent["samples"]
    if samples.any() or latent.get("noise_mask") is not None:
        raise InvalidParameter(
            "latent",
            "the latent is not empty: this version makes pictures from a prompt only, not from another picture; "
            "link an Empty Latent without a mask",
        )
    height, width = samples.shape[-2] * LATENT_SCALE, samples.shape[-1] * LATENT_SCALE
    request = SampleRequest(
        width=width,
        height=height,
        count=samples.shape[0],
        seed=seed,
        steps=steps or variant or model.defaults.num_inference_steps,
        guidance=model.defaults.guidance_scale if guidance < 0 else guidance,
    )
    model.limits.width.check("width", width)
    model.limits.height.check("height", height)
    model.limits.num_images.check(request.count)
    if variant is not None and request.steps != variant:
        raise InvalidParameter(
            "num_inference_steps",
            f"num_inference_steps {request.steps} does not match the loaded {variant}-step checkpoint of {model.name}; "
            f"set steps to {variant} (or 0) here, or choose {request.steps} steps on the loader",
        )
    model.limits.num_inference_steps.check(request.steps)
    model.limits.guidance_scale.check(request.guidance)
    return request


def needs_negative(model: Model, guidance: float) -> bool:
    """Whether a negative prompt has any effect: classifier-free guidance runs only above 1."""
    effective = model.defaults.guidance_scale if guidance < 0 else guidance
    return model.uses_negative_prompt and effective > 1


def sample(
    loaded: LoadedPipeline,
    spec: LoadSpec,
    positive: Conditioning,
    negative: Conditioning | None,
    latent: Mapping[str, Any],
    seed: int,
    steps: int = 0,
    guidance: float = -1.0,
) -> torch.Tensor:
    """Sample every image of the batch; returns raw VAE latents (B, C, h, w), float32 on the CPU.

    Image ``i`` uses ``seed + i`` and is sampled alone, so it equals the single picture with that seed. The noise is
    drawn on the CPU: a seed means the same on every device.
    """
    request = plan_sample(loaded.model, spec.variant, latent, seed, steps, guidance)
    prompt = prompt_arguments(loaded, request, positive, negative)
    control = ControlRun(loaded, "text-to-image") if loaded.controls else None
    pipe: Any = control.pipe if control else loaded.pipe
    progress = SampleProgress(loaded, request)
    stage = [loaded.denoiser_name, *(["vae"] if progress.needs_vae else [])]
    loaded.fit(request.width, request.height)

    def work() -> torch.Tensor:
        room = sample_room(loaded, request.width, request.height)
        with placed(room), torch.no_grad():
            return loaded.compiled.run(loaded, lambda: torch.cat([one(index) for index in range(request.count)]))

    def placed(room: int) -> AbstractContextManager[None]:
        if control is None:
            return loaded.placement.stage(stage, room)
        return control.stage(stage, room, request.width, request.height)

    def one(index: int) -> torch.Tensor:
        more = control.arguments(index, request.width, request.height) if control else {}
        return sample_one(loaded, pipe, request, {**prompt, **more}, index, progress)

    try:
        return run_stage(loaded, f"sampling {request.width}x{request.height}", REMEDY, work)
    finally:
        pipe.on_first_latents = None
        pipe.maybe_free_model_hooks()


def sample_one(
    loaded: LoadedPipeline,
    pipe: Any,
    request: SampleRequest,
    conditions: Mapping[str, Any],
    index: int,
    progress: SampleProgress,
) -> torch.Tensor:
    """Image ``index`` of the batch, in raw VAE space (1, C, h, w), float32 on the CPU.

    The pipeline draws the noise itself: a FLUX ControlNet draws from the same generator before it.
    """
    pipe.on_first_latents = partial(progress.start, index)
    latents = pipe(
        **conditions,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator("cpu").manual_seed((request.seed + index) % SEEDS),
        output_type="latent",
        return_dict=False,
        callback_on_step_end=progress.step,
    )[0]
    return to_raw(loaded, unpacked(loaded, request, latents)).float().cpu()


def unpacked(loaded: LoadedPipeline, request: SampleRequest, latents: torch.Tensor) -> torch.Tensor:
    """FLUX packs 2x2 latent pixels into one token; back to (1, C, h, w)."""
    if loaded.model.family != "flux":
        return latents
    pipe: Any = loaded.pipe
    return pipe._unpack_latents(latents, request.height, request.width, pipe.vae_scale_factor)


def prompt_arguments(
    loaded: LoadedPipeline, request: SampleRequest, positive: Conditioning, negative: Conditioning | None
) -> dict[str, torch.Tensor]:
    """The embeddings, under the pipeline's own argument names."""
    embeds, pooled = embeddings(loaded, positive, "positive")
    arguments = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    if not needs_negative(loaded.model, request.guidance):
        return arguments
    pipe: Any = loaded.pipe
    if negative is None or is_empty(negative):
        if pipe.config.force_zeros_for_empty_prompt:
            return arguments  # the pipeline itself takes zeros then
        negative = encode(loaded, "")
    embeds, pooled = embeddings(loaded, negative, "negative")
    return {**arguments, "negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}


class SampleProgress:
    """Reports each step of each image to ComfyUI, with a preview, and stops when the user interrupts.

    ``ProgressBar.update_absolute`` is what does it all in ComfyUI: it raises InterruptProcessingException, which must
    escape through the pipeline. ``pipe._interrupt`` would only skip the remaining steps and return what is there.
    """

    def __init__(self, loaded: LoadedPipeline, request: SampleRequest) -> None:
        import comfy.utils
        import latent_preview

        self._loaded = loaded
        self._request = request
        self._previewer = make_previewer(loaded)
        self._largest_side: int = latent_preview.MAX_PREVIEW_RESOLUTION
        self._bar = comfy.utils.ProgressBar(request.count * request.steps)
        self._index = 0
        self._before: torch.Tensor | None = None

    @property
    def needs_vae(self) -> bool:
        """Whether previews run through the pipeline's own VAE."""
        return self._previewer is not None and has_small_vae(self._loaded)

    def start(self, index: int, latents: torch.Tensor) -> None:
        """Image ``index`` begins from ``latents``, as its scheduler sees them."""
        self._index = index
        self._before = latents

    def step(self, pipe: Any, step: int, timestep: object, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """diffusers' ``callback_on_step_end``; changes nothing."""
        import comfy.model_management as mm

        mm.throw_exception_if_processing_interrupted()
        done = self._index * self._request.steps + step + 1
        self._bar.update_absolute(done, self._request.count * self._request.steps, self._preview(step, tensors))
        self._before = tensors["latents"]
        return {}

    def _preview(self, step: int, tensors: dict[str, torch.Tensor]) -> Preview | None:
        if self._previewer is None:
            return None
        latents, before = tensors["latents"], self._before
        scheduler: Any = self._loaded.pipe.scheduler
        sigmas = getattr(scheduler, "sigmas", None)
        if before is not None and sigmas is not None and step + 1 < len(sigmas):
            latents = predicted_clean(before, latents, float(sigmas[step]), float(sigmas[step + 1]))
        picture = self._previewer(unpacked(self._loaded, self._request, latents))
        return ("JPEG", picture, self._largest_side)
