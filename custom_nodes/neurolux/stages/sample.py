"""Denoise, by the diffusers pipeline itself; what is ours is the checks, the progress and the previews."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..adapters.control.applied import ControlRun
from ..adapters.lora.distilled import scheduled
from ..catalog.models import Model
from ..errors import InvalidParameter
from ..families.parts.placed import derived
from ..families.registry import family_of, pipeline_class
from ..families.spec import FamilySpec, Task
from ..images.pixels import check_finite
from ..loading.compiled import run_compiled
from ..loading.loaded import LoadedPipeline
from ..loading.node_bar import NodeBar, Preview
from ..loading.replanning import fit
from ..loading.working_memory import image_encoding_memory, image_encoding_type, run_stage, sampling_memory
from ..memory.vae_tiling import tiling
from .decode import to_raw
from .image_encoding import images_encoded_in_place
from .noise import noise_drawn
from .preview import has_small_vae, make_previewer, predicted_clean
from .prompts.conditioning import GUIDANCE, Conditioning, as_long
from .prompts.encode import encode, encoded_tensors, prompt_of
from .references import References, all_references, check_reference, refuse_several
from .tasks import ImageSource, accepted, begin_with, choose_task, steps_to_run

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
    task: Task
    strength: float
    """How much of the image that it begins with is redrawn, 0 to 1."""
    running: int
    """The steps that are run: all, or at a strength below 1 the last ones."""
    source: ImageSource
    references: References = References()
    """What it sees beside the source."""

    def seen(self, family: FamilySpec) -> int:
        """Pixels that a step attends to beside those that it draws: those of the image that it redraws, and others."""
        if self.task == "edit":
            own = 0 if self.source.image is None else family.edit_pixels
            return own + self.references.pixels(family)
        return self.width * self.height if self.task == "inpaint" and family.edits_parts else 0


def plan_sample(
    model: Model,
    variant: int | None,
    latent: Mapping[str, Any],
    seed: int,
    steps: int = 0,
    guidance: float = -1.0,
    strength: float = 1.0,
) -> SampleRequest:
    """Fill in defaults (``steps`` 0, ``guidance`` below 0) and check all; raises InvalidParameter."""
    scale = family_of(model.family).latent.scale
    source = ImageSource.of(latent, scale)
    samples = source.samples
    task = choose_task(model, source, strength)
    height, width = samples.shape[-2] * scale, samples.shape[-1] * scale
    steps = steps or variant or model.defaults.num_inference_steps
    request = SampleRequest(
        width=width,
        height=height,
        count=samples.shape[0],
        seed=seed,
        steps=steps,
        guidance=model.defaults.guidance_scale if guidance < 0 else guidance,
        task=task,
        strength=strength,
        running=steps_to_run(model, task, steps, strength),
        source=source,
    )
    model.limits.width.check("width", width)
    model.limits.height.check("height", height)
    model.limits.num_images.check(request.count)
    check_seen(model, request)
    if variant is not None and request.steps != variant:
        raise InvalidParameter(
            "num_inference_steps",
            f"num_inference_steps {request.steps} does not match the loaded {variant}-step checkpoint of {model.name}; "
            f"set steps to {variant} (or 0)",
        )
    model.limits.num_inference_steps.check(request.steps)
    model.limits.guidance_scale.check(request.guidance)
    return request


def check_seen(model: Model, request: SampleRequest) -> None:
    """Raise InvalidParameter for images that the model would not take."""
    source = request.source
    if source.references:
        refuse_several(model, "latent", "take out image_2 and image_3 of Image to Edit")
    if request.task == "edit" and source.image is not None:
        check_reference(model, "image", source.image[0])
    for image in source.references:
        check_reference(model, "a reference image", image)


def needs_negative(model: Model, guidance: float) -> bool:
    """Whether a negative prompt has any effect: classifier-free guidance runs only above 1."""
    effective = model.defaults.guidance_scale if guidance < 0 else guidance
    return model.uses_negative_prompt and effective > 1


def sample(
    loaded: LoadedPipeline,
    request: SampleRequest,
    positive: Conditioning,
    negative: Conditioning | None,
    *,
    span: ProgressSpan | None = None,
) -> torch.Tensor:
    """Sample every image of the batch; returns raw VAE latents (B, C, h, w), float32 on the CPU.

    ``request`` is what ``plan_sample`` made for the pipeline's model and checkpoint. Image ``i`` uses ``seed + i`` and
    is sampled alone, so it equals the single image with that seed. The noise is drawn on the CPU, in the type that the
    pipeline computes in, as diffusers does, or in fp32 (noise.py): only then does a seed mean the same on devices that
    compute in different types.
    ``span``: where its steps are in a longer count.
    """
    asked, request = request, with_guidance(loaded, request, positive)
    request, shown = with_references(loaded, request, positive, negative)
    prompt = prompt_arguments(loaded, request, positive, negative)
    control = ControlRun(loaded, request.task) if loaded.controls else None
    pipe: Any = control.pipe if control else task_pipeline(loaded, request.task)
    progress = SampleProgress(loaded, request, span)
    stage = [loaded.denoiser_name, *(["vae"] if progress.needs_vae or request.task != "text-to-image" else [])]
    passes = 2 if needs_negative(loaded.model, request.guidance) else 1
    encodes = None if request.task == "text-to-image" else image_encoding_type(loaded)
    seen = request.seen(family_of(loaded.model.family))
    fit(loaded, request.width, request.height, passes=passes, frames=1, encodes=encodes, seen=seen)

    def work() -> torch.Tensor:
        with placed(), torch.no_grad():
            return run_compiled(loaded, lambda: torch.cat([one(index) for index in range(request.count)]))

    @contextmanager
    def placed() -> Iterator[None]:
        needed = task_memory(loaded, request)
        if control is None:
            where = loaded.placement.stage(stage, needed)
        else:
            where = control.stage(stage, needed, request.width, request.height)
        if request.task == "text-to-image":
            with where:
                yield
            return
        tiles = tiling(loaded.pipe.vae, loaded.placement.plan.vae_tile, loaded.pipe.vae_scale_factor)
        with where, tiles, images_encoded_in_place(loaded):
            yield

    def one(index: int) -> torch.Tensor:
        width, height, source = request.width, request.height, request.source
        more = control.arguments(index, width, height, source.frame) if control else {}
        begin = begin_with(pipe, source.arguments(loaded, request.task, request.strength, index), width, height)
        if request.references:
            begin = request.references.beside(begin, loaded, pipe, index)
        more |= accepted(pipe, **begin)
        return sample_one(loaded, pipe, request, {**prompt, **more}, index, progress)

    try:
        with scheduled(loaded, pipe):
            made = run_stage(loaded, f"sampling {request.width}x{request.height}", REMEDY, work)
    finally:
        pipe.on_first_latents = None
        pipe.maybe_free_model_hooks()
    # Only now: what fails is not told about in the next job.
    loaded.unreported_warnings += [
        *replaced_guidance(loaded, asked, request),
        *shown,
        *request.source.warnings(),
        *(control.warnings(request.running) if control else []),
    ]
    return made


def task_pipeline(loaded: LoadedPipeline, task: Task) -> Any:
    """The pipeline for ``task`` over the loaded one's components. Raises InvalidParameter where there is none."""
    if task == "text-to-image":
        return loaded.pipe
    wanted, options = pipeline_class(loaded.model, task), family_of(loaded.model.family).pipeline_options
    return derived(loaded.pipe, wanted, options(loaded.pipe.config))


def task_memory(loaded: LoadedPipeline, request: SampleRequest) -> int:
    """Working memory of a step, or of encoding the image where that takes more."""
    width, height = request.width, request.height
    passes = 2 if needs_negative(loaded.model, request.guidance) else 1
    if request.task == "text-to-image":
        return sampling_memory(loaded, width, height, passes=passes)
    seen = replace(loaded.workload, width=width, height=height, seen=request.seen(family_of(loaded.model.family)))
    step = sampling_memory(loaded, width, seen.attended_height, passes=passes)
    return max(step, image_encoding_memory(loaded, *largest_encoded(loaded, request)))


def largest_encoded(loaded: LoadedPipeline, request: SampleRequest) -> tuple[int, int]:
    """Width and height of the largest image that the pipeline encodes."""
    most = family_of(loaded.model.family).edit_pixels
    sizes = [(image.shape[1], image.shape[0]) for image in request.references.images]
    scaled = [(width, min(height, most // width)) for width, height in sizes]
    return max([(request.width, request.height), *scaled], key=lambda size: size[0] * size[1])


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
    family = family_of(loaded.model.family)
    pipe.on_first_latents = partial(progress.start, index)
    with noise_drawn(pipe):
        latents = pipe(
            **conditions,
            **accepted(pipe, width=request.width, height=request.height),
            num_inference_steps=request.steps,
            **{family.guidance_argument: family.guidance(request.guidance)},
            **pipe.call_options,
            generator=generator_of(request, index),
            output_type="latent",
            return_dict=False,
            callback_on_step_end=progress.step,
        )[0]
    made = to_raw(loaded, unpacked(loaded, pipe, request, latents)).float().cpu()
    check_finite(made, f"the sampled latents of {loaded.model.name}")
    return made


def unpacked(loaded: LoadedPipeline, pipe: Any, request: SampleRequest, latents: torch.Tensor) -> torch.Tensor:
    """The denoiser's latents as (1, C, h, w). ``pipe`` has sampled them."""
    return family_of(loaded.model.family).latent.unpack(pipe, latents, request.height, request.width)


def generator_of(request: SampleRequest, index: int) -> torch.Generator:
    """The source of the noise of image ``index`` of the batch, on the CPU: its place in the batch that it came from
    counts (``batch_index`` of a LATENT), as in ComfyUI's ``prepare_noise``."""
    return torch.Generator("cpu").manual_seed((request.seed + request.source.places[index]) % SEEDS)


def with_guidance(loaded: LoadedPipeline, request: SampleRequest, positive: Conditioning) -> SampleRequest:
    """``request`` with the guidance that FluxGuidance put into the prompt, if any. Raises InvalidParameter."""
    wanted = prompt_of(loaded, positive, "positive").extra.get(GUIDANCE)
    return request if wanted is None else replace(request, guidance=float(wanted))


def with_references(
    loaded: LoadedPipeline, request: SampleRequest, positive: Conditioning, negative: Conditioning | None
) -> tuple[SampleRequest, list[str]]:
    """``request`` with all the images that the model is to see, and warnings. Raises InvalidParameter."""
    model, prompts = loaded.model, {"positive": prompt_of(loaded, positive, "positive").extra}
    if negative is not None and needs_negative(model, request.guidance):
        prompts["negative"] = prompt_of(loaded, negative, "negative").extra
    channels = family_of(model.family).latent.channels_with(loaded.pipe.vae)
    found, warnings = all_references(model, request.source.references, prompts, channels)
    if not found:
        return request, warnings
    if request.task == "inpaint":
        raise InvalidParameter(
            "latent",
            f"{model.name} sees no reference images while it redraws a masked part; take out the mask, or the "
            "references (image_2, image_3, ReferenceLatent)",
        )
    return replace(request, task="edit", references=found), warnings


def replaced_guidance(loaded: LoadedPipeline, asked: SampleRequest, used: SampleRequest) -> list[str]:
    """A warning where Sample's own guidance had no effect; its default may be replaced."""
    if used.guidance == asked.guidance or asked.guidance == loaded.model.defaults.guidance_scale:
        return []
    return [f"the prompt's own guidance {used.guidance:g} (set by FluxGuidance) was used instead of {asked.guidance:g}"]


def prompt_arguments(
    loaded: LoadedPipeline, request: SampleRequest, positive: Conditioning, negative: Conditioning | None
) -> dict[str, Any]:
    """The embeddings and what goes with them, under the pipeline's own argument names. Raises InvalidParameter."""
    family = family_of(loaded.model.family)
    encoding = family.encoding
    arguments: dict[str, Any] = encoded_tensors(loaded, positive, "positive")
    prompts = {"": prompt_of(loaded, positive, "positive")}
    if needs_negative(loaded.model, request.guidance):
        if negative is not None:
            prompts["negative_"] = prompt_of(loaded, negative, "negative")
        pipe: Any = loaded.pipe
        empty = negative is None or prompts["negative_"].empty
        if not (empty and getattr(pipe.config, "force_zeros_for_empty_prompt", False)):  # it takes zeros itself
            if negative is None or (empty and encoding.no_negative):
                negative = encode(loaded, encoding.no_negative)
            unwanted = encoded_tensors(loaded, negative, "negative")
            main = encoding.main
            if family.costs.guides_at_once and not encoding.listed:
                arguments[main], unwanted[main] = as_long(arguments[main], unwanted[main], encoding, loaded.model)
            arguments |= {f"negative_{name}": value for name, value in unwanted.items()}
    if any(prompt.extra.keys() & encoding.extras for prompt in prompts.values()):
        for prefix, prompt in prompts.items():
            given = encoding.extra_arguments(prompt.extra, request.width, request.height)
            arguments |= {f"{prefix}{name}": value for name, value in given.items()}
    if encoding.listed:
        for name in {encoding.main, f"negative_{encoding.main}"} & arguments.keys():
            arguments[name] = list(arguments[name])
    return arguments


@dataclass(frozen=True)
class ProgressSpan:
    """Steps that were done before, and all that there are to do: one bar for several runs of the sampler."""

    before: int
    total: int


class SampleProgress:
    """Reports each step of each image to ComfyUI, with a preview, and stops when the user interrupts.

    The bar raises InterruptProcessingException, which must escape through the pipeline. ``pipe._interrupt`` would only
    skip the remaining steps and return what is there.
    """

    def __init__(self, loaded: LoadedPipeline, request: SampleRequest, span: ProgressSpan | None = None) -> None:
        import latent_preview

        self._loaded = loaded
        self._request = request
        self._previewer = make_previewer(loaded)
        self._largest_side: int = latent_preview.MAX_PREVIEW_RESOLUTION
        self._span = span or ProgressSpan(0, request.count * request.running)
        self._bar = NodeBar(self._span.total)
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
        self._bar.check()
        done = self._span.before + self._index * self._request.running + step + 1
        self._bar.show(done, self._span.total, self._preview(pipe, step, tensors))
        self._before = tensors["latents"]
        return {}

    def _preview(self, pipe: Any, step: int, tensors: dict[str, torch.Tensor]) -> Preview | None:
        if self._previewer is None:
            return None
        latents, before = tensors["latents"], self._before
        sigmas = getattr(pipe.scheduler, "sigmas", None)
        step += self._request.steps - self._request.running  # the schedule has those as well that are not run
        if before is not None and sigmas is not None and step + 1 < len(sigmas):
            latents = predicted_clean(before, latents, float(sigmas[step]), float(sigmas[step + 1]))
        image = self._previewer(unpacked(self._loaded, pipe, self._request, latents))
        return ("JPEG", image, self._largest_side)
