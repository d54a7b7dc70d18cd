"""LoRA files on a loaded pipeline: put in once, then switched on and off by each handle that borrows the pipeline.

The base weights are never changed, so taking every LoRA away gives the base image back, bit for bit. Several at a
time are added in one fixed order (by file), so that the order of the nodes does not change a rounding.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ...catalog.models import Model
from ...errors import InvalidParameter, WeightsMissing
from ...families.registry import family_of
from ...loading.handle import AppliedLora
from ...loading.loaded import LoadedLora, LoadedPipeline
from ...memory.backends.choice import backend
from ...memory.out_of_memory import with_memory_errors
from ...weights.files import open_file
from ...weights.stamps import FileStamp, read_shapes, stamp_file
from ..detect import detect
from .dialects import read_layers, spells_encoder
from .insertion import NO_SUCH_LAYER, Insertion, insert, inserted, places_of, planned
from .settings import read_settings

MOST_UNUSED = 4
MOST_UNUSED_BYTES = 1_000_000_000
"""LoRAs that no current graph uses stay in memory, beside their component, up to both bounds."""
LOAD_ERRORS = (
    ValueError, LookupError, RuntimeError, AttributeError, NotImplementedError, TypeError, OSError, AssertionError,
)  # fmt: skip
"""What diffusers and peft raise for a file whose layers do not fit; they have no error of their own for it."""
PEFT_KEY = re.compile(r"(transformer|unet|text_encoder(_2)?)\.[^:]+\.lora_[AB]\.weight")
KOHYA_KEY = re.compile(r"lora_(unet|te\d?)_\w+\.(lora_(down|up)\.weight|alpha)")
XLABS_KEY = re.compile(r"\.processor\.(qkv|proj)_lora\d?\.(down|up)\.weight$")
LONGEST_REASON = 400
_log = logging.getLogger(__name__)


def with_lora(applied: Iterable[AppliedLora], added: AppliedLora) -> tuple[AppliedLora, ...]:
    """``applied`` and ``added``: strengths of the same file add up, and one that comes to nothing is left out."""
    by_file = {lora.file: lora for lora in applied}
    before = by_file.get(added.file)
    if before is not None:
        added = replace(
            added,
            strength=before.strength + added.strength,
            text_strength=before.text_strength + added.text_strength,
        )
    by_file[added.file] = added
    used = (lora for lora in by_file.values() if lora.strength or lora.text_strength)
    return tuple(sorted(used, key=lambda lora: str(lora.file.path)))


def check_lora(model: Model, file: FileStamp) -> None:
    """Raise InvalidParameter where ``file`` is not for ``model``'s family, WeightsMissing where it is damaged."""
    found = detect("lora", file)
    if found.problem is not None:
        raise InvalidParameter("lora", f"LoRA {file.name} cannot be used: {found.problem}")
    if found.family is not None and model.family not in (found.family, *found.also):
        raise InvalidParameter(
            "lora",
            f"LoRA {file.name} was made for {found.family} and {model.name} is a {model.family} model; "
            f"choose a LoRA for {model.family}, or load a {found.family} model",
        )


def switch_loras(pipeline: LoadedPipeline, wanted: tuple[AppliedLora, ...]) -> None:
    """Have exactly ``wanted`` in effect; loads what is new, drops what has been unused for long.

    Raises InvalidParameter or WeightsMissing; then none is in effect.
    """
    loras = pipeline.loras
    if wanted == loras.active:
        return
    # peft marks the weights in use as trainable, which an inference mode tensor refuses
    with torch.inference_mode(False), torch.no_grad():
        activate(pipeline, ())
        drop_unused(pipeline, wanted)
        for lora in wanted:
            if lora.file not in loras.loaded:
                check_lora(pipeline.model, lora.file)
                loras.loaded[lora.file] = load_lora(pipeline, lora.file)
            loras.loaded.move_to_end(lora.file)
        activate(pipeline, wanted)


def notes(pipeline: LoadedPipeline, files: Collection[FileStamp]) -> list[str]:
    """What to tell the user of those LoRAs in effect that ``files`` names: which of their layers are not in use."""
    active = [lora.file for lora in pipeline.loras.active if lora.file in files]
    found = (pipeline.loras.loaded[file].note for file in active)
    return [note for note in found if note is not None]


def clear_loras(pipeline: LoadedPipeline) -> None:
    """Take every LoRA out, those that are not in use too."""
    with torch.inference_mode(False), torch.no_grad():
        activate(pipeline, ())
        for file in list(pipeline.loras.loaded):
            remove_lora(pipeline, file)


def activate(pipeline: LoadedPipeline, wanted: tuple[AppliedLora, ...]) -> None:
    """Have ``wanted``, all of them loaded, in effect, and no other."""
    from diffusers.utils import set_adapter_layers, set_weights_and_activate_adapters

    loaded = pipeline.loras.loaded
    for name in {part for lora in loaded.values() for part in lora.parts}:
        component = getattr(pipeline.pipe, name)
        here = [lora for lora in wanted if name in loaded[lora.file].parts]
        set_adapter_layers(component, enabled=bool(here))
        if here:
            strengths = [lora.text_strength if name.startswith("text_encoder") else lora.strength for lora in here]
            set_weights_and_activate_adapters(component, [lora.file.key for lora in here], strengths)
    pipeline.loras.active = wanted


def drop_unused(pipeline: LoadedPipeline, wanted: tuple[AppliedLora, ...]) -> None:
    """Take out what is over the bounds, and every file that has been replaced since."""
    loaded, kept = pipeline.loras.loaded, {lora.file for lora in wanted}
    unused = [file for file in loaded if file not in kept]
    leaving = [file for file in unused if outdated(file)]
    staying = [file for file in unused if file not in leaving]
    while len(staying) > MOST_UNUSED or sum(loaded[file].bytes for file in staying) > MOST_UNUSED_BYTES:
        leaving.append(staying.pop(0))
    for file in leaving:
        _log.info("NeuroLux: taking LoRA %s out of %s", file.name, pipeline.model.name)
        remove_lora(pipeline, file)


def outdated(file: FileStamp) -> bool:
    """Whether ``file`` has been replaced or deleted."""
    try:
        return stamp_file(file.name, file.path) != file
    except WeightsMissing:
        return True


@contextmanager
def quiet() -> Iterator[None]:
    """Without what diffusers, transformers and peft say of every component that a LoRA leaves alone."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def converted(pipeline: LoadedPipeline, file: FileStamp) -> Mapping[str, torch.Tensor]:
    """The file's tensors under diffusers' names, whoever trained it (kohya, XLabs, peft)."""
    pipe: Any = pipeline.pipe
    loras = family_of(pipeline.model.family).loras
    more = loras.state_arguments(pipe) if loras is not None else {}
    found = pipe.lora_state_dict(tensors_of(file), **more)
    return found[0] if isinstance(found, tuple) else found


def tensors_of(file: FileStamp) -> dict[str, torch.Tensor]:
    """The file's tensors. diffusers is not given its name: it only takes ``.safetensors`` for a safetensors file."""
    return {name: value.clone() for name, value in open_file(file.path).items()}


def load_lora(pipeline: LoadedPipeline, file: FileStamp) -> LoadedLora:
    """Put ``file``'s layers beside those of the pipeline's components. Raises InvalidParameter or OutOfMemory."""
    remedy = "Use fewer or smaller LoRAs, or a leaner offload (stream or sequential) on the loader."
    return with_memory_errors(f"loading LoRA {file.name}", remedy, lambda: put_beside(pipeline, file))


def put_beside(pipeline: LoadedPipeline, file: FileStamp) -> LoadedLora:
    """The same, with torch's own errors where memory runs out."""
    pipe: Any = pipeline.pipe
    parts = adaptable(pipe)
    try:
        with quiet():
            plan = plan_insertion(pipeline, file)
            parts = tuple(name for name in parts if name in plan.parts)
            as_diffusers = diffusers_reads(pipeline, file, plan)
        with pipeline.placement.changing(parts), quiet():
            try:
                if as_diffusers:
                    pipe.load_lora_weights(tensors_of(file), adapter_name=file.key)
                else:
                    insert(pipe, file.key, plan, widens_of(pipeline), pipeline.precision.main)
                for part in parts:
                    if missing := plan.of(part) - inserted(getattr(pipe, part), file.key):
                        raise ValueError(f"layer {min(missing)} could not be loaded")
            except BaseException:
                take_out(pipe, file.key, parts)
                raise
            sizes = {name: adapter_bytes(getattr(pipe, name), file.key) for name in parts}
    except LOAD_ERRORS as error:
        if backend().is_out_of_memory(error) or isinstance(error, InvalidParameter):
            raise
        raise InvalidParameter(
            "lora",
            f"LoRA {file.name} does not fit {pipeline.model.name} ({reason(error)}); "
            f"choose one that was trained on this {pipeline.model.family} model",
        ) from error
    note = left_out_text(pipeline, file, plan)
    _log.info("NeuroLux: LoRA %s in %s: %.1f MB", file.name, pipeline.model.name, sum(sizes.values()) / 1e6)
    if note is not None:
        _log.warning("NeuroLux: %s", note)
    return LoadedLora(parts, sum(sizes.values()), note)


def adaptable(pipe: Any) -> tuple[str, ...]:
    """The components that a LoRA may change: those that diffusers knows, and every other text encoder."""
    known: tuple[str, ...] = tuple(pipe._lora_loadable_modules)
    encoders = (name for name in pipe.components if name.startswith("text_encoder") and name not in known)
    return tuple(name for name in (*known, *encoders) if getattr(pipe, name, None) is not None)


def widens_of(pipeline: LoadedPipeline) -> str:
    """The layer that takes a file's fewer inputs."""
    loras = family_of(pipeline.model.family).loras
    return "" if loras is None else loras.widens


def reason(error: BaseException) -> str:
    """The lines of an error's text as one, or its class if it has none."""
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__


def plan_insertion(pipeline: LoadedPipeline, file: FileStamp) -> Insertion:
    """Where the file's layers go. Raises InvalidParameter for a file of which less than half is used."""
    pipe: Any = pipeline.pipe
    family = family_of(pipeline.model.family)
    loras = family.loras
    if loras is None:
        raise InvalidParameter("lora", f"{pipeline.model.name} takes no LoRA: the pack has none for {family.title}")
    tensors = open_file(file.path)
    check_values(file, tensors)
    layers = read_layers(tensors, read_settings(file))
    places = places_of(pipe, adaptable(pipe), family.denoiser, loras)
    plan = planned(layers, pipe, places, family.denoiser, loras.widens)
    trained = [layer for layer in layers if not layer.foreign and not spells_encoder(layer.name)]
    used = set(plan.placed)
    if not plan.placed or sum(layer.name in used for layer in trained) * 2 < len(trained):
        raise InvalidParameter("lora", refusal(pipeline, file, plan, len(layers)))
    return plan


def check_values(file: FileStamp, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise InvalidParameter for NaN or infinity, which would make every image black."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise InvalidParameter(
                "lora",
                f"LoRA {file.name} holds values that are not numbers (NaN or infinity) in {name}: its training failed, "
                "or it was converted to fp16; choose another file",
            )


def refusal(pipeline: LoadedPipeline, file: FileStamp, plan: Insertion, count: int) -> str:
    """Why a file is not loaded at all."""
    reasons = Counter(plan.left_out.values())
    common = reasons.most_common(1)[0][0] if reasons else "it has no layers"
    if common == NO_SUCH_LAYER:
        return (
            f"LoRA {file.name} has no layer that {pipeline.model.name} has, or few ({len(plan.placed)} of {count}); "
            f"choose one that was trained on {pipeline.model.family}"
        )
    return (
        f"LoRA {file.name} cannot be loaded: {common}; choose a LoRA, LoCon, LoHa, LoKr, DoRA, GLoRA, OFT, BOFT, "
        "(IA)³ or difference of weights for this model"
    )


def left_out_text(pipeline: LoadedPipeline, file: FileStamp, plan: Insertion) -> str | None:
    """How many of the file's layers are used, and why the others are not; None if all are."""
    if not plan.left_out:
        return None
    whole = len({*plan.placed, *plan.left_out})
    used = len(set(plan.placed) - set(plan.left_out))
    reasons = "; ".join(f"{count}: {text}" for text, count in Counter(plan.left_out.values()).most_common(3))
    example = next(iter(plan.left_out))
    return (
        f"LoRA {file.name}: {used} of {whole} layers are in use by {pipeline.model.name} "
        f"(not in use are {reasons}; such as {example!r})"
    )


def diffusers_reads(pipeline: LoadedPipeline, file: FileStamp, plan: Insertion) -> bool:
    """Whether diffusers' own loader reads the whole file, and nothing but what is in it.

    Then it is used, so that an image equals diffusers' to the bit: products of other shapes round otherwise.
    """
    shapes = read_shapes(file.path)
    if any(len(shape) == 3 for shape in shapes.values()):  # of a convolution over time, with one moment
        return False
    keys = list(shapes)
    plain = all(PEFT_KEY.fullmatch(key) for key in keys)
    kohya = all(KOHYA_KEY.fullmatch(key) for key in keys)
    if not plain and not kohya and not all(XLABS_KEY.search(key) for key in keys):
        return False
    loras = family_of(pipeline.model.family).loras
    if any(layer.settings is not None and layer.settings.scale != 1 for layer, _ in plan.placed.values()):
        return False
    if loras is not None and any(layer == loras.widens for _, layer in plan.targets):
        return False
    try:
        state = converted(pipeline, file)
        if loras is not None:
            loras.check(pipeline.denoiser, state)
    except LOAD_ERRORS as error:
        if backend().is_out_of_memory(error):
            raise
        return False
    found = {without_text_model(key.rpartition(".lora_")[0]) for key in state if ".lora_" in key}
    return found == {without_text_model(f"{part}.{layer}") for part, layer in plan.targets}


def without_text_model(name: str) -> str:
    """A layer's name without the level of CLIP's module that transformers has dropped."""
    return name.replace(".text_model.", ".", 1)


def remove_lora(pipeline: LoadedPipeline, file: FileStamp) -> None:
    """Take ``file``'s layers out of the components again."""
    parts = pipeline.loras.loaded.pop(file).parts
    with pipeline.placement.changing(parts):
        take_out(pipeline.pipe, file.key, parts)


def take_out(pipe: Any, name: str, parts: Iterable[str]) -> None:
    """Delete one adapter; with the last one of a component its own layers come back in their old places."""
    from diffusers.utils import delete_adapter_layers, recurse_remove_peft_layers

    for part in parts:
        component = getattr(pipe, part)
        delete_adapter_layers(component, name)
        configs = getattr(component, "peft_config", {})
        configs.pop(name, None)
        if not configs:
            recurse_remove_peft_layers(component)
            if hasattr(component, "peft_config"):
                del component.peft_config
            component._hf_peft_config_loaded = False


def adapter_bytes(component: torch.nn.Module, name: str) -> int:
    """Bytes of one adapter's weights in ``component``."""
    return sum(weight.nbytes for key, weight in component.named_parameters() if f".{name}." in f"{key}.")
