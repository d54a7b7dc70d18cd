"""What LoRA and ControlNet files were made for, by the names and shapes of their tensors.

Opens no weights and imports no torch: a folder of thousands of files can be listed, and a file for another model
refused, before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import WeightsMissing
from ..weights.stamps import CONFIG_FILE, FileStamp, Shapes, read_config, read_shapes, stamp_file, weight_files

AdapterKind = Literal["lora", "controlnet"]
FLUX_WORDS = ("double_blocks", "single_blocks", "single_transformer_blocks", "transformer.transformer_blocks")
CONTROL_CLASSES = {"FluxControlNetModel": "flux", "ControlNetModel": "sdxl", "ControlNetUnionModel": "sdxl"}
CROSS_ATTENTION_WIDTHS = {768: "sd15", 1024: "sd2"}
"""Of UNets that are not SDXL's."""


@dataclass(frozen=True)
class Detected:
    """What a file was made for."""

    family: str | None
    """ "flux", "sdxl", another's name, or None where the file does not tell."""
    problem: str | None = None
    """Why it cannot be used with any model, where that is so."""


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA or a ControlNet that is on this machine."""

    name: str
    kind: AdapterKind
    family: str | None
    bytes: int
    problem: str | None = None


_detected: dict[tuple[AdapterKind, FileStamp], Detected] = {}


def detect_lora(header: Shapes) -> Detected:
    """What a LoRA was made for."""
    if any("lora_" not in key and key.endswith(("query_norm.scale", "norm_q.weight")) for key in header):
        return Detected("flux", "it is a Control-LoRA, which widens the model's input; use a ControlNet instead")
    if any("joint_blocks" in key for key in header):
        return Detected("sd3")
    if any(word in key for key in header for word in FLUX_WORDS):
        return Detected("flux")
    if not any(key.startswith(("unet.", "lora_unet_", "text_encoder", "lora_te")) for key in header):
        return Detected(None)
    widths = {
        shape[1]
        for key, shape in header.items()
        if "attn2" in key
        and "to_k" in key
        and len(shape) > 1
        and any(word in key for word in ("lora_A", "down.weight"))
    }
    other = next((CROSS_ATTENTION_WIDTHS[width] for width in sorted(widths) if width in CROSS_ATTENTION_WIDTHS), None)
    return Detected(other or "sdxl")


def detect_control(header: Shapes) -> Detected:
    """What a ControlNet's single file was made for."""
    if "lora_controlnet" in header:
        return Detected("sdxl", "it is a Control-LoRA, which diffusers cannot read; use a whole ControlNet")
    if any(key.startswith("double_blocks.") for key in header):
        return Detected(
            "flux",
            "it has its authors' own tensor names, which diffusers cannot read; "
            "use the version for diffusers (a folder with config.json, or one file from it)",
        )
    if "controlnet_x_embedder.weight" in header:
        return Detected("flux")
    if "control_model.time_embed.0.weight" in header:
        return Detected("sdxl" if "control_model.label_emb.0.0.weight" in header else "sd15")
    if "controlnet_cond_embedding.conv_in.weight" in header:
        return Detected("sdxl" if "add_embedding.linear_1.weight" in header else "sd15")
    return Detected(None, "it holds no ControlNet that diffusers can read")


def detect_folder(name: str, folder: Path) -> Detected:
    """What a ControlNet's diffusers folder was made for, by its configuration."""
    config = read_config(name, folder)
    class_name = config.get("_class_name")
    if class_name == "ControlNetModel":
        return Detected("sdxl" if config.get("addition_embed_type") == "text_time" else "sd15")
    if class_name in CONTROL_CLASSES:
        return Detected(CONTROL_CLASSES[class_name])
    return Detected(None, f"its {CONFIG_FILE} names the class {class_name}; usable are {', '.join(CONTROL_CLASSES)}")


def detect(kind: AdapterKind, stamp: FileStamp) -> Detected:
    """What ``stamp`` was made for; read once a file. Raises WeightsMissing for a damaged one."""
    found = _detected.get((kind, stamp))
    if found is None:
        if stamp.path.is_dir():
            for file in weight_files(stamp.path):
                read_shapes(file)
            found = detect_folder(stamp.name, stamp.path)
        else:
            header = read_shapes(stamp.path)
            found = detect_lora(header) if kind == "lora" else detect_control(header)
        _detected[(kind, stamp)] = found
    return found


def collapsed(names: Iterable[str], locate: Callable[[str], Path | None]) -> list[str]:
    """ControlNets to choose from: of a diffusers folder its own name instead of its files'."""
    shown: dict[str, None] = {}
    for name in names:
        path = locate(name)
        if path is not None and len(Path(name).parts) > 1 and (path.parent / CONFIG_FILE).is_file():
            shown[Path(name).parent.as_posix()] = None
        else:
            shown[name] = None
    return list(shown)


def list_files(kind: AdapterKind, files: Iterable[tuple[str, Path]]) -> list[AdapterFile]:
    """Every file among ``files`` (name, path), and what is wrong with those that cannot be used."""
    found = []
    for name, path in files:
        try:
            stamp = stamp_file(name, path)
        except WeightsMissing:
            continue  # gone since the folder was read
        try:
            detected = detect(kind, stamp)
        except WeightsMissing as error:
            detected = Detected(None, str(error))
        found.append(AdapterFile(name, kind, detected.family, stamp.size, detected.problem))
    return found
