"""Many images in one run: each as if generated alone, and one that fails does not take the others with it.

Stage by stage, not image by image: all prompts are encoded, then all images sampled, then all decoded, so that a
model that does not fit on the device whole is moved there once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import comfy.model_management as mm
import torch

from ..adapters.borrow import borrow
from ..adapters.lora.distilled import as_sampled
from ..adapters.lora.lists import STRENGTH_LIMIT
from ..errors import InvalidParameter, NeuroLuxError, NothingGenerated
from ..library.known_models import known_models, model_stamp
from ..loading.handle import LoadSpec, PipelineHandle
from ..loading.loaded import LoadedPipeline
from ..loading.node_progress import NodeReporter
from .decode import decode
from .latent import empty_latent
from .many_values import MOST_PROMPT_CHARACTERS, shortened
from .prompts.conditioning import told_by
from .prompts.encode import encode
from .sample import SEEDS, ProgressSpan, SampleRequest, needs_negative, plan_sample, sample

if TYPE_CHECKING:
    from .prompts.conditioning import Conditioning

T = TypeVar("T")
NAMED_IN_ERROR = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shot:
    """One image to generate. Sizes and steps of 0 and a guidance of -1 mean the model's own default."""

    label: str
    """What distinguishes it from the others, for a sentence."""
    prompt: str
    seed: int
    negative: str = ""
    steps: int = 0
    guidance: float = -1.0
    width: int = 0
    height: int = 0
    model: str | None = None
    """None: that of the pipeline."""
    lora_strength: float | None = None
    """Of every LoRA on the pipeline; None: as it was applied."""


@dataclass(frozen=True)
class Generated:
    """A shot that became an image."""

    shot: Shot
    image: torch.Tensor
    """(1, H, W, 3) in [0, 1], float32 on the CPU."""
    caption: str
    """Prompt and settings, for the file."""


@dataclass(frozen=True)
class Failed:
    """A shot that did not."""

    shot: Shot
    error: Exception

    @property
    def reason(self) -> str:
        """What happened, in one line."""
        text = " ".join(str(self.error).split())
        return text if isinstance(self.error, NeuroLuxError) else f"{type(self.error).__name__}: {shortened(text, 200)}"


@dataclass(frozen=True)
class Gallery:
    """What became of all shots, in their order, and what else their reader should know."""

    outcomes: tuple[Generated | Failed, ...]
    notes: tuple[str, ...]

    @property
    def generated(self) -> list[Generated]:
        """The images that there are."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Generated)]

    @property
    def failed(self) -> list[Failed]:
        """The shots that there is no image of."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Failed)]

    @property
    def warnings(self) -> list[str]:
        """One for each image that is missing, then the notes."""
        return [*(f"not generated: {failed.shot.label}: {failed.reason}" for failed in self.failed), *self.notes]


@dataclass(frozen=True)
class Planned:
    """A shot whose values have been checked. ``index`` is its place among all."""

    index: int
    shot: Shot
    handle: PipelineHandle
    request: SampleRequest


@dataclass
class Progress:
    """Steps of all images together."""

    total: int
    before: int = 0


@dataclass
class Notes:
    """Sentences for the reader, each once."""

    said: dict[str, None] = field(default_factory=dict)

    def add(self, *sentences: str) -> None:
        self.said.update(dict.fromkeys(sentences))


def generate_all(pipeline: PipelineHandle, shots: Sequence[Shot]) -> Gallery:
    """Generate an image of every shot. Raises only when none could be generated, and when the user interrupts."""
    outcomes: dict[int, Generated | Failed] = {}
    planned: list[Planned] = []
    for index, shot in enumerate(shots):
        plan = attempt(lambda index=index, shot=shot: plan_shot(pipeline, index, shot))
        if isinstance(plan, Planned):
            planned.append(plan)
        else:
            outcomes[index] = Failed(shot, plan)
    progress, notes = Progress(sum(plan.request.steps for plan in planned)), Notes()
    for group in by_pipeline(planned):
        outcomes.update(generate_group(group, progress, notes))
    gallery = Gallery(tuple(outcomes[index] for index in range(len(shots))), tuple(notes.said))
    if not gallery.generated:
        raise error_of_all(gallery.failed)
    for failed in gallery.failed:
        _log.warning("NeuroLux: not generated: %s: %s", failed.shot.label, failed.reason)
    return gallery


def attempt(work: Callable[[], T]) -> T | Exception:
    """What ``work`` returns, or the exception that it raised; an interruption passes through."""
    try:
        return work()
    except mm.InterruptProcessingException:
        raise
    except Exception as error:
        if not isinstance(error, NeuroLuxError):
            _log.exception("NeuroLux: one of many images failed")
        return error.with_traceback(None)  # it would keep the tensors of the failed stage in memory


def plan_shot(pipeline: PipelineHandle, index: int, shot: Shot) -> Planned:
    """Check all values of one shot. Raises NeuroLuxError."""
    if len(shot.prompt) > MOST_PROMPT_CHARACTERS:
        raise InvalidParameter(
            "prompt", f"the prompt has {len(shot.prompt)} characters; at most {MOST_PROMPT_CHARACTERS} are allowed"
        )
    if not 0 <= shot.seed < SEEDS:
        raise InvalidParameter("seed", f"seed {shot.seed} is outside 0 to {SEEDS - 1}")
    handle = changed(pipeline, shot)
    latent = {"samples": empty_latent(handle.model, shot.width, shot.height, 1)}
    model = as_sampled(handle.model, handle.loras)
    request = plan_sample(model, handle.spec.variant, latent, shot.seed, shot.steps, shot.guidance)
    return Planned(index, shot, handle, request)


def changed(pipeline: PipelineHandle, shot: Shot) -> PipelineHandle:
    """``pipeline`` with the shot's model, checkpoint and LoRA strength; nothing is loaded yet. Raises NeuroLuxError."""
    model, spec = pipeline.model, pipeline.spec
    if shot.model is not None and shot.model != model.name:
        model = known_models().get(shot.model)
        spec = LoadSpec(model.name, model_stamp(model), model.variant(shot.steps), spec.precision, spec.offload)
    elif model.step_distilled:
        spec = replace(spec, variant=model.variant(shot.steps))
    loras = pipeline.loras
    if shot.lora_strength is not None:
        if not loras:
            raise InvalidParameter("lora_strength", "the pipeline has no LoRA; put Apply LoRA between it and the grid")
        if not abs(shot.lora_strength) <= STRENGTH_LIMIT:
            raise InvalidParameter(
                "lora_strength",
                f"lora_strength {shot.lora_strength:g} is outside -{STRENGTH_LIMIT:g} to {STRENGTH_LIMIT:g}",
            )
        strength = shot.lora_strength
        loras = tuple(replace(lora, strength=strength, text_strength=strength) for lora in loras if strength)
    if (spec, loras) == (pipeline.spec, pipeline.loras) and not pipeline.any_checkpoint:
        return pipeline
    return replace(pipeline, spec=spec, model=model, loras=loras, any_checkpoint=False)


def by_pipeline(planned: Sequence[Planned]) -> list[list[Planned]]:
    """Those that need the same weights together, so that each are loaded once."""
    groups: dict[tuple[object, ...], list[Planned]] = {}
    for plan in planned:
        groups.setdefault((plan.handle.spec, plan.handle.loras), []).append(plan)
    return list(groups.values())


def generate_group(group: Sequence[Planned], progress: Progress, notes: Notes) -> dict[int, Generated | Failed]:
    """Generate what needs the same weights; outcomes by index."""
    loaded = attempt(lambda: borrow(group[0].handle, NodeReporter()))
    if isinstance(loaded, Exception):
        progress.before += sum(plan.request.steps for plan in group)
        return {plan.index: Failed(plan.shot, loaded) for plan in group}
    known = encode_all(loaded, group, notes)
    outcomes: dict[int, Generated | Failed] = {}
    latents: dict[int, torch.Tensor] = {}
    for plan in group:
        samples = attempt(lambda plan=plan: sample_shot(loaded, plan, known, progress))
        progress.before += plan.request.steps
        if isinstance(samples, Exception):
            outcomes[plan.index] = Failed(plan.shot, samples)
        else:
            latents[plan.index] = samples
    for plan in group:
        if plan.index not in latents:
            continue
        samples = latents.pop(plan.index)
        image = attempt(lambda samples=samples: decode_shot(loaded, samples))
        failed = isinstance(image, Exception)
        outcomes[plan.index] = Failed(plan.shot, image) if failed else Generated(plan.shot, image, caption(plan))
    notes.add(*loaded.take_warnings())
    return outcomes


def encode_all(
    loaded: LoadedPipeline, group: Sequence[Planned], notes: Notes
) -> Mapping[str, Conditioning | Exception]:
    """Each text once, however many images it is for."""
    prompts = {plan.shot.prompt: None for plan in group}
    texts = prompts | {negative_of(plan): None for plan in group if negative_of(plan)}
    several = len(prompts) > 1
    return {text: attempt(lambda text=text: encode_text(loaded, text, notes, named=several)) for text in texts}


def encode_text(loaded: LoadedPipeline, text: str, notes: Notes, *, named: bool) -> Conditioning:
    mm.throw_exception_if_processing_interrupted()
    conditioning = encode(loaded, text)
    for warning in told_by(conditioning):
        notes.add(f"{shortened(text)!r}: {warning}" if named else warning)
    return conditioning


def negative_of(plan: Planned) -> str:
    """The negative prompt, where it has an effect."""
    return plan.shot.negative.strip() if needs_negative(plan.handle.model, plan.request.guidance) else ""


def sample_shot(
    loaded: LoadedPipeline, plan: Planned, known: Mapping[str, Conditioning | Exception], progress: Progress
) -> torch.Tensor:
    mm.throw_exception_if_processing_interrupted()
    negative = negative_of(plan)
    against = encoded(known[negative]) if negative else None
    span = ProgressSpan(progress.before, progress.total)
    return sample(loaded, plan.request, encoded(known[plan.shot.prompt]), against, span=span)


def encoded(found: Conditioning | Exception) -> Conditioning:
    """The conditioning; raises what prevented it."""
    if isinstance(found, Exception):
        raise found
    return found


def decode_shot(loaded: LoadedPipeline, samples: torch.Tensor) -> torch.Tensor:
    mm.throw_exception_if_processing_interrupted()
    return decode(loaded, samples)


def caption(plan: Planned) -> str:
    """Prompt and settings as image viewers know them from the PNG text ``parameters`` (the web UI of AUTOMATIC1111)."""
    request, handle = plan.request, plan.handle
    settings: dict[str, Any] = {
        "Steps": request.steps,
        "CFG scale": f"{request.guidance:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": handle.model.name,
    }
    if handle.loras:
        settings["LoRA"] = " ".join(f"{lora.file.name}:{lora.strength:g}" for lora in handle.loras)
    negative = negative_of(plan)
    lines = [plan.shot.prompt, *([f"Negative prompt: {negative}"] if negative else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])


def error_of_all(failed: Sequence[Failed]) -> Exception:
    """The error of a run that generated nothing: the only one there was, or one that names the first few."""
    if len({failure.reason for failure in failed}) == 1:
        return failed[0].error
    named = "; ".join(f"{failure.shot.label}: {failure.reason}" for failure in failed[:NAMED_IN_ERROR])
    more = f"; and {len(failed) - NAMED_IN_ERROR} more" if len(failed) > NAMED_IN_ERROR else ""
    message = f"none of the {len(failed)} images could be generated: {named}{more}"
    first = failed[0].error
    if all(isinstance(failure.error, InvalidParameter) for failure in failed) and isinstance(first, InvalidParameter):
        return InvalidParameter(first.field, message)
    return NothingGenerated(message)
