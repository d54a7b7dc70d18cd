"""Identifies single weight files by the names of their tensors, never by the file's name.

A file may hold one component (a FLUX transformer, a T5 encoder) or all of them (a checkpoint). Each component is
recognized by a tensor that no other component has, with any prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

from ...errors import WeightsMissing
from ...weights.file_kinds import FileKind, Place, TensorInfo
from ...weights.headers import WeightHeader, read_header
from ...weights.stamps import Shapes
from ..parts.unet import FIRST_CROSSED, SD2_TEXT_WIDTH
from ..registry import all_parts, families
from ..spec import Detected, FamilySpec
from .recognized import recognized_lora

UMT5_MARKS = ("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight", "enc.blk.1.attn_rel_b.weight")
"""T5 has this bias in its first block only. UMT5 (used by Wan and others), which has another vocabulary, has it in
every block."""
OTHER_MODELS = (
    ("nerf_image_embedder.embedder.0.weight", "Chroma Radiance transformer"),
    ("nerf_blocks.0.param_generator.weight", "Chroma Radiance transformer"),
    ("time_guidance_embed.guidance_embedder.linear_1.weight", "FLUX.2 dev transformer"),
    ("joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3 transformer"),
    ("txt_in.individual_token_refiner.blocks.0.norm1.weight", "HunyuanVideo transformer"),
    ("txt_in.text_norm.weight", "Qwen-Image 2.1 transformer"),
    ("__index_timestep_zero__", "Qwen-Image-Edit-2511 transformer"),
    ("time_text_embed.addition_t_embedding.weight", "Qwen-Image-Layered transformer"),
    ("encoder.down_blocks.0.resnets.0.norm1.gamma", "VAE of Qwen-Image 2.1 or Wan 2.2"),
    ("encoder.downsamples.0.downsamples.0.residual.0.gamma", "VAE of Qwen-Image 2.1 or Wan 2.2"),
    ("noise_refiner.0.adaLN_modulation.1.weight", "Lumina Image 2 transformer"),
    ("noise_refiner.0.norm1.linear.weight", "Lumina Image 2 transformer"),
    ("siglip_embedder.1.weight", "Z-Image Omni transformer"),
    ("blocks.0.cross_attn.norm_k.weight", "Wan transformer"),
)
"""A tensor that only this kind of model has."""
OTHER_PAIRS = (("single_stream_modulation.lin.weight", "guidance_in.in_layer.weight", "FLUX.2 dev transformer"),)
"""Two tensors that only this kind of model has together."""
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
"""The end of the name of a file that holds a part of a model (Hugging Face, llama.cpp)."""
SD2_MARKS = (f"input_blocks.1.1.{FIRST_CROSSED}", f"down_blocks.0.attentions.0.{FIRST_CROSSED}")
LORA_MARKS = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", "lora_A.default.weight")
TRAINED_ON = "base_model_family"
"""In the metadata of the LoRAs that are trained here: small ones can have the shapes of several families."""
CONTROLNET_MARKS = ("controlnet_", "control_model.", "input_hint_block.", "control_layers.")


def read_kind(path: Path) -> FileKind:
    """The kind of the file at ``path``.

    Raises WeightsMissing, also for a part of a model, and where its tensors have impossible shapes.
    """
    header = read_header(path)
    split = SPLIT.search(path.stem)
    if split is not None and int(split[2]) > 1:
        raise WeightsMissing(
            f"{path.name} is part {int(split[1])} of {int(split[2])} of a model; use one whole file, or put all parts "
            "and their index as a diffusers folder into ComfyUI's models/diffusers"
        )
    try:
        return identify(header)
    except Exception as error:  # the names and shapes in a file may be anything
        raise WeightsMissing(f"{path} cannot be identified ({error!r}); choose another file") from error


def identify(header: WeightHeader) -> FileKind:
    """The kind of the file with ``header``, and the components in it."""
    tensors = header.tensors
    if any(name.endswith(LORA_MARKS) for name in tensors):
        return FileKind("LoRA", {})
    if any(name.startswith(CONTROLNET_MARKS) for name in tensors):
        return FileKind("ControlNet", {})
    if any(name.endswith(UMT5_MARKS) for name in tensors):
        return FileKind("UMT5 encoder, which other models use", {})
    parts = find_parts(tensors)
    other = other_model(tensors)
    if other is not None:  # its names may look like a known denoiser's, and its encoders may be usable
        denoisers = {family.components[family.denoiser].part.name for family in families().values()}
        return FileKind(other, {name: place for name, place in parts.items() if name not in denoisers})
    if len(parts) > 1:
        for family in families().values():
            if family.components[family.denoiser].part.name in parts:
                return FileKind(f"{family.title} checkpoint", parts)
    if parts:
        return FileKind(" or ".join(map(part_title, parts)), parts)
    return FileKind("file of another kind of model", {})


def other_model(tensors: Mapping[str, TensorInfo]) -> str | None:
    """The kind of model that the pack does not support, by a tensor that no supported one has; None for others."""
    pairs = (title for *ends, title in OTHER_PAIRS if all(any(map(ends_with(end), tensors)) for end in ends))
    single = (title for end, title in OTHER_MODELS if any(map(ends_with(end), tensors)))
    named = next(chain(single, pairs), None)
    wide = any(name.endswith(SD2_MARKS) and info.shape[-1] == SD2_TEXT_WIDTH for name, info in tensors.items())
    return "Stable Diffusion 2 UNet" if named is None and wide else named


def ends_with(end: str) -> Callable[[str], bool]:
    """Whether a name ends with ``end``."""
    return lambda name: name.endswith(end)


def find_parts(tensors: Mapping[str, TensorInfo]) -> dict[str, Place]:
    """The places of the components among ``tensors``, by part name."""
    parts: dict[str, Place] = {}
    for part in all_parts():
        for signature in part.signatures:
            for name in tensors:
                if not name.endswith(signature.tensor):
                    continue
                prefix = name[: -len(signature.tensor)]
                if (prefix and not prefix.endswith(".")) or not signature.accepts(tensors[name], prefix):
                    continue
                if any(prefix + name not in tensors for name in signature.beside):
                    continue
                if signature.without and any(other.endswith(signature.without) for other in tensors):
                    continue
                parts.setdefault(part.name, Place(prefix, signature.layout))
    return parts


def family_of_file(kind: FileKind) -> FamilySpec | None:
    """The family whose denoiser is in the file; None if no family that can be loaded from single files has it."""
    found = single_file_families().values()
    return next((family for family in found if family.components[family.denoiser].part.name in kind.parts), None)


def single_file_families() -> dict[str, FamilySpec]:
    """The families that can be loaded from single files, by name."""
    return {name: family for name, family in families().items() if family.single_files is not None}


def main_files() -> str:
    """The possible main files of a model, as text: "FLUX transformer, SDXL UNet"."""
    return ", ".join(family.components[family.denoiser].part.title for family in single_file_families().values())


def part_title(name: str) -> str:
    """The title of the part called ``name``."""
    return next(part.title for part in all_parts() if part.name == name)


def detect_lora(header: Shapes, metadata: Mapping[str, str] | None = None) -> Detected:
    """The family that a LoRA file was made for: by its layers, and of relatives the one that its metadata name."""
    found = lora_by_layers(header)
    named = (metadata or {}).get(TRAINED_ON)
    return found if named not in families() or named == found.family else Detected(named, certain=True)


def lora_by_layers(header: Shapes) -> Detected:
    """The family that has the layers of a LoRA file."""
    known = (family.loras.detect(header) for family in families().values() if family.loras is not None)
    found = sorted((found for found in known if found is not None), key=lambda found: not found.certain)
    return recognized_lora(header) or next(iter(found), Detected(None))


def detect_control(header: Shapes) -> Detected:
    """The family that a ControlNet's single file was made for."""
    known = (family.detect_control(header) for family in families().values())
    none = Detected(None, "it contains no ControlNet that diffusers can read")
    return next((found for found in known if found is not None), none)
