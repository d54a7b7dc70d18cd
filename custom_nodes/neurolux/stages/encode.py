"""A prompt into ComfyUI's conditioning, by diffusers' own ``encode_prompt``."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from ..errors import InvalidParameter
from ..loading.loaded import LoadedPipeline
from ..loading.working_memory import encoding_memory, run_stage
from .embedding_cache import Conditioning, embedding_cache

EMPTY_PROMPT = "neurolux_empty_prompt"
"""Marks the conditioning of an empty text. As a negative it means "none", for which SDXL has its own rule (zeros)."""
REMEDY = "Choose a leaner offload (stream or sequential) on the loader, or close what else uses the device."
_log = logging.getLogger(__name__)


def encode(loaded: LoadedPipeline, text: str) -> Conditioning:
    """Encode ``text``: embeddings of shape (1, tokens, width) and pooled ones of shape (1, width), on the CPU.

    A text that these encoders have encoded before is not encoded again.
    """
    pipe = loaded.pipe
    encoders = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    key = cache_key(loaded, encoders, text)
    known = embedding_cache.get(key)
    if known is not None:
        return known

    def work() -> Conditioning:
        with loaded.placement.stage(encoders, encoding_memory(loaded, encoders)), torch.no_grad():
            if loaded.model.family == "flux":
                embeds, pooled, _ = pipe.encode_prompt(
                    text, device=loaded.device, max_sequence_length=loaded.model.max_sequence_length
                )
            elif loaded.model.family == "sdxl":
                embeds, _, pooled, _ = pipe.encode_prompt(text, device=loaded.device, do_classifier_free_guidance=False)
            else:
                embeds, _ = pipe.encode_prompt(text, loaded.device, 1, False)
                pooled = None  # Stable Diffusion 1.5 reads the tokens only
        extra: dict[str, Any] = {} if pooled is None else {"pooled_output": pooled.cpu()}
        if not text.strip():
            extra[EMPTY_PROMPT] = True
        return [[embeds.cpu(), extra]]

    started = time.perf_counter()
    made = run_stage(loaded, "encoding the prompt", REMEDY, work)
    _log.info("NeuroLux: %s: encoded a prompt in %.1f s", loaded.model.name, time.perf_counter() - started)
    embedding_cache.put(key, made)
    return made


def cache_key(loaded: LoadedPipeline, encoders: list[str], text: str) -> tuple[object, ...]:
    """What an encoded prompt depends on: the files, the types, the LoRAs of the encoders, and the text."""
    spec, plan = loaded.spec, loaded.placement.plan
    formats = tuple((name, plan.components[name].storage, plan.components[name].compute) for name in encoders)
    limit = loaded.model.max_sequence_length
    return spec.model, spec.stamp, loaded.device.type, formats, loaded.loras.text_key, limit, text


def embeddings(
    loaded: LoadedPipeline, conditioning: Conditioning, field: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tensors of ``conditioning``, as ``loaded`` needs them: those of the tokens, and the pooled one if it has any.

    Raises InvalidParameter for another model's.
    """
    if len(conditioning) != 1:
        raise InvalidParameter(
            field,
            f"the {field} conditioning has {len(conditioning)} parts; use one Encode Prompt, "
            "not Conditioning (Combine) or (Set Area)",
        )
    embeds, extra = conditioning[0]
    needs_pooled = loaded.model.family != "sd15"
    pooled = extra.get("pooled_output") if needs_pooled else None
    expected = denoiser_width(loaded)
    if (needs_pooled and pooled is None) or embeds.shape[-1] != expected:
        raise InvalidParameter(
            field,
            f"the {field} conditioning is {embeds.shape[-1]} wide and {loaded.model.name} takes {expected}; "
            "encode the prompt with the same pipeline that samples",
        )
    dtype = loaded.precision.main
    return embeds.to(loaded.device, dtype), None if pooled is None else pooled.to(loaded.device, dtype)


def denoiser_width(loaded: LoadedPipeline) -> int:
    """The width of the embeddings that the denoiser attends to."""
    config: Any = loaded.denoiser.config
    return config.joint_attention_dim if loaded.model.family == "flux" else config.cross_attention_dim


def is_empty(conditioning: Conditioning | None) -> bool:
    """Whether there is no negative prompt: nothing linked, or an empty text."""
    return conditioning is None or all(extra.get(EMPTY_PROMPT) for _, extra in conditioning)
