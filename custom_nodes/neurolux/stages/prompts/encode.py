"""A prompt into ComfyUI's conditioning, by diffusers' own ``encode_prompt``."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from ...errors import InvalidParameter
from ...families.registry import family_of
from ...families.spec import Encoding
from ...images.pixels import check_finite
from ...loading.loaded import LoadedPipeline
from ...loading.working_memory import encoding_memory, run_stage
from ..environment import chosen_padding
from .check import prompt_warnings, weight_warnings
from .conditioning import ENCODED, POOLED, Conditioning, Encoded, Prompt, read_prompt
from .embedding_cache import embedding_cache
from .weighting import read_weights, weighted

REMEDY = "Choose a leaner offload (stream or sequential) on the loader, or close what else uses the device."
_log = logging.getLogger(__name__)


def check_text(text: str) -> None:
    """Raise InvalidParameter for what no tokenizer reads."""
    if not isinstance(text, str):
        raise InvalidParameter("prompt", f"the prompt is no text ({type(text).__name__}); link a text")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidParameter("prompt", "the prompt has half of a character (a lone surrogate); write it again")


def encode(loaded: LoadedPipeline, text: str, *, literal: bool = False) -> Conditioning:
    """Encode ``text`` into ComfyUI's CONDITIONING, on the CPU: every tensor that the family's encoder returns.

    Its weights apply, unless it is ``literal`` or the encoder knows none. A text that these encoders have encoded
    before is not encoded again. Raises InvalidParameter.
    """
    check_text(text)
    family = family_of(loaded.model.family)
    encoders = [name for name in family.text_encoders if getattr(loaded.pipe, name, None) is not None]
    prompt = read_weights(text) if family.encoding.weighs_tokens and not literal else None
    plain = text if prompt is None else prompt.text
    by = family.encoding.like_diffusers if chosen_padding() == "diffusers" else None
    by = by or family.encoding.encode
    key = (*cache_key(loaded, encoders, text), literal, by)
    known = embedding_cache.get(key)
    if known is not None:
        return known

    def encoded(text: str) -> dict[str, torch.Tensor]:
        return by(loaded.pipe, text, loaded.device, loaded.model.max_sequence_length)

    def work() -> Conditioning:
        with loaded.placement.stage(encoders, encoding_memory(loaded, encoders)), torch.no_grad():
            tensors = encoded(plain)
            if prompt is not None and prompt.weighted:
                main, pipe = family.encoding.main, loaded.pipe
                tensors[main] = weighted(tensors[main], encoded("")[main], getattr(pipe, "tokenizer", None), prompt)
        found = {name: value.cpu() for name, value in tensors.items()}
        for value in found.values():
            check_finite(value, "the encoded prompt's embeddings")
        warnings = [*prompt_warnings(loaded, plain), *([] if prompt or literal else weight_warnings(loaded, text))]
        return as_conditioning(family.encoding, found, plain, tuple(warnings))

    started = time.perf_counter()
    made = run_stage(loaded, "encoding the prompt", REMEDY, work)
    _log.info("NeuroLux: %s: encoded a prompt in %.1f s", loaded.model.name, time.perf_counter() - started)
    embedding_cache.put(key, made)
    return made


def as_conditioning(
    encoding: Encoding, tensors: dict[str, torch.Tensor], text: str, warnings: tuple[str, ...] = ()
) -> Conditioning:
    """``tensors`` in the places that ComfyUI's stock nodes know, and what has none in an ``Encoded``."""
    embeds = tensors[encoding.main]
    pooled = None if encoding.pooled is None else tensors[encoding.pooled]
    others = {name: value for name, value in tensors.items() if name not in (encoding.main, encoding.pooled)}
    extra: dict[str, Any] = {} if pooled is None else {POOLED: pooled}
    extra[ENCODED] = Encoded(embeds, pooled, others, not text.strip(), warnings)
    return [[embeds, extra]]


def cache_key(loaded: LoadedPipeline, encoders: list[str], text: str) -> tuple[object, ...]:
    """What an encoded prompt depends on: the files, the types, the LoRAs of the encoders, and the text."""
    spec, plan = loaded.spec, loaded.placement.plan
    formats = tuple((name, plan.components[name].storage, plan.components[name].compute) for name in encoders)
    limit = loaded.model.max_sequence_length
    return spec.model, spec.stamp, loaded.device.type, formats, loaded.loras.text_key, limit, text


def encoded_tensors(loaded: LoadedPipeline, conditioning: Conditioning, field: str) -> dict[str, torch.Tensor]:
    """The tensors of ``conditioning`` under the pipeline's names for them, on its device and in its type.

    Raises InvalidParameter for another model's.
    """
    return {name: placed(value, loaded) for name, value in named_tensors(loaded, conditioning, field).items()}


def named_tensors(loaded: LoadedPipeline, conditioning: Conditioning, field: str) -> dict[str, torch.Tensor]:
    """The tensors of ``conditioning`` by name, the embeddings first. Raises InvalidParameter for another model's."""
    encoding = family_of(loaded.model.family).encoding
    return prompt_of(loaded, conditioning, field).tensors(encoding, loaded.model, field)


def prompt_of(loaded: LoadedPipeline, conditioning: Conditioning, field: str) -> Prompt:
    """The prompt in ``conditioning``, checked. Raises InvalidParameter."""
    config: Any = loaded.denoiser.config
    return read_prompt(conditioning, loaded.model, family_of(loaded.model.family).encoding, config, field)


def placed(value: torch.Tensor, loaded: LoadedPipeline) -> torch.Tensor:
    """On the device, and in the type that is computed in; masks and indices keep theirs."""
    return value.to(loaded.device, loaded.precision.main if value.is_floating_point() else value.dtype)
