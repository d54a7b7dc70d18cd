"""What a CONDITIONING may carry: the encoded prompt itself, and the extras that stock nodes add to it.

Every extra is either honoured or refused by its name and the node that sets it; none is dropped in silence. The list is
``EXTRAS``; what a family honours beside it is in its ``Encoding``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch

from ...catalog.models import Model
from ...errors import InvalidParameter
from ...families.spec import Encoding
from ...images.pixels import check_finite

Conditioning = list[list[Any]]
"""ComfyUI's own: a list of [embeddings, extra], where extra holds ``pooled_output``."""
ENCODED = "neurolux_encoded"
"""Where a conditioning carries its ``Encoded``."""
POOLED = "pooled_output"
GUIDANCE = "guidance"
MOST_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Encoded:
    """What Encode Prompt made. Stock nodes copy it along with other extras, so it tells whether it still applies."""

    embeds: torch.Tensor
    pooled: torch.Tensor | None
    others: Mapping[str, torch.Tensor]
    """What the encoder returned beside the embeddings and the pooled ones, by name."""
    empty: bool
    """Whether the text was empty. As a negative it means "none", for which a pipeline may have its own rule (SDXL's
    zeros)."""
    warnings: tuple[str, ...] = ()
    """What the model cannot use of the text."""

    def applies(self, embeds: torch.Tensor, extra: Mapping[str, Any]) -> bool:
        """Whether a conditioning still holds these tensors, or some that are equal."""
        return same(self.embeds, embeds) and same(self.pooled, extra.get(POOLED))


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors are equal, or there are none."""
    if one is None or other is None or one is other:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)


@dataclass(frozen=True)
class Extra:
    """Something that stock nodes add to a conditioning and that no diffusers pipeline follows."""

    what: str
    node: str
    """The stock nodes that set it."""
    remedy: str = ""
    """What to do instead of only taking the node out."""
    neutral: Callable[[Any], bool] = lambda value: value is None
    """Whether a value changes nothing."""


def companion(of: str, node: str) -> Extra:
    """An extra that means nothing without ``of``, which is refused itself."""
    return Extra(f"a setting of {of}", node, neutral=lambda value: True)


REGIONS = "to confine a prompt to a part of an image, redraw that part: Encode Image with a mask"
WHOLE_AREA = ("percentage", 1.0, 1.0, 0, 0)
SCHEDULED = "Create Hook or Set CLIP Hooks"
VIDEO_NODE = "a node for another kind of model"
EXTRAS: dict[str, Extra] = {
    "area": Extra(
        "an area", "Conditioning (Set Area)", REGIONS, lambda value: value is None or tuple(value) == WHOLE_AREA
    ),
    "set_area_to_bounds": companion("area", "Conditioning (Set Area)"),
    "strength": Extra(
        "a strength",
        "Conditioning (Set Area Strength)",
        "to weaken a prompt, use Conditioning (Average) with an empty one",
        lambda value: value is None or value == 1,
    ),
    "mask": Extra(
        "a mask", "Conditioning (Set Mask)", REGIONS, lambda value: value is None or bool((value == 1).all())
    ),
    "mask_strength": companion("mask", "Conditioning (Set Mask)"),
    "start_percent": Extra(
        "a first step", "ConditioningSetTimestepRange", neutral=lambda value: value is None or value <= 0
    ),
    "end_percent": Extra(
        "a last step", "ConditioningSetTimestepRange", neutral=lambda value: value is None or value >= 1
    ),
    "clip_start_percent": Extra("a first step", SCHEDULED, neutral=lambda value: value is None or value <= 0),
    "clip_end_percent": Extra("a last step", SCHEDULED, neutral=lambda value: value is None or value >= 1),
    "hooks": Extra("hooks", SCHEDULED, "to apply a LoRA, use Apply LoRA on the pipeline"),
    "default": Extra("the mark of a default prompt", "Cond Set Default Combine"),
    "control": Extra("a ControlNet", "Apply ControlNet", "use NeuroLux's Apply ControlNet on the pipeline"),
    "control_apply_to_uncond": companion("control", "Apply ControlNet"),
    "gligen": Extra("a text box", "GLIGENTextBoxApply", REGIONS),
    "reference_latents": Extra(
        "reference latents",
        "ReferenceLatent",
        "to edit an image, link Image to Edit to the latent of Sample and load flux2-klein-4b or "
        "flux-kontext-dev",
        lambda value: not value,
    ),
    "reference_latents_method": companion("reference_latents", "FluxKontextMultiReferenceLatentMethod"),
    "concat_latent_image": Extra(
        "an image to fill in",
        "InpaintModelConditioning or InstructPixToPixConditioning",
        "link Encode Image with a mask to the latent of Sample and load flux-fill-dev",
    ),
    "concat_mask": companion("concat_latent_image", "InpaintModelConditioning"),
    "concat_mask_index": companion("concat_latent_image", "InpaintModelConditioning"),
    "unclip_conditioning": Extra("an image prompt", "unCLIPConditioning", neutral=lambda value: not value),
    "clip_vision_output": Extra("an image prompt", VIDEO_NODE),
    "noise_augmentation": Extra("noise augmentation", VIDEO_NODE, neutral=lambda value: not value),
    "attention_mask": Extra(
        "an attention mask", "Apply Style Model", "set the strength type of Apply Style Model to multiply"
    ),
    "attention_mask_img_shape": companion("attention_mask", "Apply Style Model"),
    "aesthetic_score": Extra("an aesthetic score", "CLIPTextEncodeSDXLRefiner"),
    "width": Extra("a size", "CLIPTextEncodeSDXL"),
    "height": Extra("a size", "CLIPTextEncodeSDXL"),
    "crop_w": Extra("a crop", "CLIPTextEncodeSDXL"),
    "crop_h": Extra("a crop", "CLIPTextEncodeSDXL"),
    "target_width": Extra("a target size", "CLIPTextEncodeSDXL"),
    "target_height": Extra("a target size", "CLIPTextEncodeSDXL"),
    "prompt_type": companion("a guider", "DualCFGGuider"),
    "model_conds": Extra("inputs of a stock model", "a node of another pack"),
    **{
        name: Extra(f"{name.replace('_', ' ')} for another kind of model", VIDEO_NODE)
        for name in (
            "audio_embed", "azimuth", "camera_conditions", "conditioning_lyrics", "control_video", "elevation",
            "face_video_pixels", "frame_rate", "guiding_frame_index", "keyframe_idxs", "lyrics_strength",
            "pose_video_latent", "projected_pooled", "ref_latent", "reference_motion", "resolution", "seconds_start",
            "seconds_total", "stable_cascade_prior", "time_dim_concat", "vace_frames", "vace_mask", "vace_strength",
        )
    },
}  # fmt: skip
"""Every extra that ComfyUI's nodes set and no family honours by itself, by its key."""


@dataclass(frozen=True)
class Prompt:
    """The one part of a conditioning, checked."""

    embeds: torch.Tensor
    """(1, tokens, width)."""
    extra: Mapping[str, Any]

    @property
    def encoded(self) -> Encoded | None:
        """What Encode Prompt says about it; None where another node made it or changed it since."""
        found = self.extra.get(ENCODED)
        return found if isinstance(found, Encoded) and found.applies(self.embeds, self.extra) else None

    @property
    def empty(self) -> bool:
        """Whether it is an empty text, and nothing else was mixed in."""
        return self.encoded is not None and self.encoded.empty

    def tensors(self, encoding: Encoding, model: Model, field: str) -> dict[str, torch.Tensor]:
        """The encoder's tensors by name, the embeddings first. Raises InvalidParameter where one is missing."""
        found = {encoding.main: self.embeds}
        source = self.extra.get(ENCODED)
        if isinstance(source, Encoded) and source.others:
            if self.encoded is None:
                raise InvalidParameter(
                    field,
                    f"a stock node changed the {field} conditioning after it was encoded, and {model.name} also takes "
                    f"{' and '.join(source.others)}, which no longer fit; link Encode Prompt directly",
                )
            found |= source.others
        if encoding.pooled is not None:
            found[encoding.pooled] = self.extra[POOLED]
        return found


def is_conditioning(value: Any) -> bool:
    """Whether ``value`` has the form of a conditioning: pairs of embeddings and extras."""
    return isinstance(value, list | tuple) and all(
        isinstance(part, list | tuple)
        and len(part) == 2
        and isinstance(part[0], torch.Tensor)
        and isinstance(part[1], Mapping)
        for part in value
    )


def read_prompt(
    conditioning: Conditioning, model: Model, encoding: Encoding, config: Mapping[str, Any], field: str
) -> Prompt:
    """The prompt in ``conditioning``. ``config``: the denoiser's.

    Raises InvalidParameter for another model's, for several at once, and for an extra that is not honoured.
    """
    if not is_conditioning(conditioning):
        raise InvalidParameter(
            field, f"the {field} conditioning is not one ({type(conditioning).__name__}); link Encode Prompt"
        )
    if len(conditioning) != 1:
        raise InvalidParameter(
            field,
            f"the {field} conditioning has {len(conditioning)} parts; use one Encode Prompt, "
            "not Conditioning (Combine) or (Set Area)",
        )
    embeds, extra = conditioning[0]
    expected = config[encoding.width]
    if embeds.shape[-1] != expected:
        raise InvalidParameter(
            field,
            f"the {field} conditioning is {embeds.shape[-1]} wide and {model.name} takes {expected}; "
            "encode the prompt with the same pipeline that samples",
        )
    if embeds.ndim != 3 or len(embeds) != 1 or not embeds.shape[1]:
        raise InvalidParameter(
            field,
            f"the {field} conditioning has the shape {tuple(embeds.shape)}; use one prompt, encoded by Encode Prompt",
        )
    most = encoding.most_tokens(config)
    if most is not None and embeds.shape[1] > most:
        raise InvalidParameter(
            field,
            f"the {field} conditioning has {embeds.shape[1]} tokens and {model.name} takes at most {most}; "
            "use fewer Conditioning (Concat) nodes",
        )
    check_pooled(extra.get(POOLED), model, encoding, config, field)
    check_finite(embeds, f"the {field} conditioning's embeddings", "Look at the node that made them.")
    for name, value in extra.items():
        check_extra(name, value, model, encoding, config, field)
    return Prompt(embeds, extra)


def check_pooled(pooled: Any, model: Model, encoding: Encoding, config: Mapping[str, Any], field: str) -> None:
    """Raise InvalidParameter unless the pooled embeddings are those of the model's encoder, where it has one."""
    if encoding.pooled is None:
        return
    wanted = encoding.pooled_width(config)
    given = tuple(pooled.shape) if isinstance(pooled, torch.Tensor) else ()
    if len(given) != 2 or given[0] != 1 or wanted not in (None, given[1]):
        held = f"has pooled embeddings of the shape {given}" if given else "has no pooled embeddings"
        raise InvalidParameter(
            field,
            f"the {field} conditioning {held} ({POOLED}) and {model.name} takes (1, {wanted or 'any'}); encode the "
            "prompt with the same pipeline that samples",
        )


def check_extra(name: str, value: Any, model: Model, encoding: Encoding, config: Mapping[str, Any], field: str) -> None:
    """Raise InvalidParameter for an extra that would be ignored."""
    if name in (ENCODED, POOLED) or name in encoding.extras:
        return
    if name == GUIDANCE:
        check_guidance(value, model, encoding.embeds_guidance(config), field)
        return
    known = EXTRAS.get(name)
    if known is None:
        raise InvalidParameter(
            field,
            f"the {field} conditioning carries {name!r}, which is not known here and would have no effect; "
            "take out the node that sets it",
        )
    if not known.neutral(value):
        instead = f", or {known.remedy}" if known.remedy else ""
        raise InvalidParameter(
            field,
            f"the {field} conditioning carries {known.what} ({name}, set by {known.node}), which {model.name} cannot "
            f"follow here; take out that node{instead}",
        )


def check_guidance(value: float | None, model: Model, embedded: bool, field: str) -> None:
    """Raise InvalidParameter for guidance in a conditioning (FluxGuidance) that the model does not read there."""
    if embedded and value is None:
        raise InvalidParameter(
            field,
            f"the {field} conditioning turns guidance off (guidance, set by FluxDisableGuidance), and {model.name} is "
            "never run without it; take out that node, or set a low guidance",
        )
    if not embedded and value is not None:
        raise InvalidParameter(
            field,
            f"the {field} conditioning carries guidance {value:g} (set by FluxGuidance), which {model.name} does not "
            "read there; take out that node, and set the guidance on Sample",
        )
    if value is not None:
        model.limits.guidance_scale.check(value)


def as_long(
    one: torch.Tensor, other: torch.Tensor, encoding: Encoding, model: Model
) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of both prompts, (1, tokens, width), with equally many tokens: diffusers runs them as one batch.

    As in ComfyUI (``comfy.conds.CONDCrossAttn``) each is repeated whole, which cross-attention does not notice.
    Raises InvalidParameter for a model that would.
    """
    lengths = one.shape[1], other.shape[1]
    if lengths[0] == lengths[1]:
        return one, other
    tokens = lcm(*lengths)
    if not encoding.cross_attends or tokens > MOST_TOKENS:
        raise InvalidParameter(
            "negative",
            f"the positive conditioning has {lengths[0]} tokens and the negative {lengths[1]}, and {model.name} takes "
            "both of one length; use as many Conditioning (Concat) nodes for one as for the other",
        )
    return one.repeat(1, tokens // lengths[0], 1), other.repeat(1, tokens // lengths[1], 1)


def told_by(*conditionings: Conditioning | None) -> list[str]:
    """The warnings of Encode Prompt about these prompts, which it tells itself only when it runs."""
    found = (extra.get(ENCODED) for conditioning in conditionings for _, extra in conditioning or ())
    return list(dict.fromkeys(warning for one in found if isinstance(one, Encoded) for warning in one.warnings))
