"""LoRA files on a loaded pipeline: put in once, then switched on and off by each handle that borrows the pipeline.

The base weights are never changed, so taking every LoRA away gives the base image back, bit for bit. Several at a
time are added in one fixed order (by file), so that the order of the nodes does not change a rounding.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..catalog.models import Model
from ..errors import InvalidParameter, WeightsMissing
from ..families.registry import family_of
from ..loading.handle import AppliedLora
from ..loading.loaded import LoadedLora, LoadedPipeline
from ..memory.out_of_memory import is_out_of_memory
from ..weights.stamps import FileStamp, stamp_file
from .detect import detect

MOST_UNUSED = 4
MOST_UNUSED_BYTES = 1_000_000_000
"""LoRAs that no current graph uses stay in memory, beside their component, up to both bounds."""
LOAD_ERRORS = (ValueError, KeyError, RuntimeError, AttributeError, NotImplementedError, TypeError, OSError)
"""What diffusers and peft raise for a file whose layers do not fit; they have no error of their own for it."""
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
    if found.family not in (None, model.family):
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
    found = pipe.lora_state_dict(str(file.path.parent), **source(file), **more)
    return found[0] if isinstance(found, tuple) else found


def source(file: FileStamp) -> dict[str, Any]:
    """diffusers' arguments to read just this file, and never one that can hold code."""
    return {"weight_name": file.path.name, "use_safetensors": True, "local_files_only": True}


def load_lora(pipeline: LoadedPipeline, file: FileStamp) -> LoadedLora:
    """Put ``file``'s layers beside those of the pipeline's components. Raises InvalidParameter."""
    pipe: Any = pipeline.pipe
    try:
        with quiet():
            state = converted(pipeline, file)
        parts = tuple(name for name in pipe._lora_loadable_modules if any(key.startswith(f"{name}.") for key in state))
        loras = family_of(pipeline.model.family).loras
        if loras is not None:
            loras.check(pipeline.denoiser, state)
        with pipeline.placement.changing(parts), quiet():
            try:
                pipe.load_lora_weights(str(file.path.parent), adapter_name=file.key, **source(file))
            except BaseException:
                take_out(pipe, file.key, parts)
                raise
            sizes = {name: adapter_bytes(getattr(pipe, name), file.key) for name in parts}
            parts = tuple(name for name, size in sizes.items() if size)
    except LOAD_ERRORS as error:
        if is_out_of_memory(error) or isinstance(error, InvalidParameter):
            raise
        raise InvalidParameter(
            "lora",
            f"LoRA {file.name} does not fit {pipeline.model.name} ({str(error).splitlines()[0]}); "
            f"choose one that was trained on this {pipeline.model.family} model",
        ) from error
    if not parts:
        raise InvalidParameter(
            "lora",
            f"LoRA {file.name} has no layer that {pipeline.model.name} has; choose one that was trained on "
            f"{pipeline.model.family}",
        )
    _log.info("NeuroLux: LoRA %s in %s: %.1f MB", file.name, pipeline.model.name, sum(sizes.values()) / 1e6)
    return LoadedLora(parts, sum(sizes.values()))


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
