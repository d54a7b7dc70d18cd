"""An image made larger: by an upscale model where there is one, else by Lanczos; then to the exact size."""

from __future__ import annotations

import comfy.model_management as mm
import folder_paths
import torch

from ..errors import InvalidParameter
from ..images.frames import resized
from ..images.pixels import alpha_of, rgb
from ..loading.modules import with_misfits
from ..memory.out_of_memory import with_memory_errors

AUTO, LANCZOS = "auto", "lanczos"
FOLDER = "upscale_models"


def upscaler_names() -> list[str]:
    """What there is to choose from."""
    return [AUTO, LANCZOS, *folder_paths.get_filename_list(FOLDER)]


def chosen_upscaler(name: str) -> str | None:
    """The upscale model's file, or None for Lanczos; ``auto``: the first file there is. Raises InvalidParameter."""
    if name == LANCZOS:
        return None
    files = folder_paths.get_filename_list(FOLDER)
    if name == AUTO:
        return files[0] if files else None
    if name not in files:
        raise InvalidParameter(
            "upscaler",
            f"there is no upscale model {name!r}; known are {', '.join(upscaler_names())}. Put the file into ComfyUI's "
            f"models/{FOLDER}/ and reload the node's list",
        )
    return name


def upscale(images: torch.Tensor, factor: float, upscaler: str) -> torch.Tensor:
    """Images (B, H, W, C) in [0, 1], ``factor`` times as wide and high; float32 on the CPU. Transparency is kept.

    An upscale model has a factor of its own: what it makes is resized to the size asked for. Raises InvalidParameter,
    WeightsMissing for a file that is no upscale model, or OutOfMemory.
    """
    images = images.detach().float().cpu().clamp(0, 1)
    size = (max(round(images.shape[2] * factor), 1), max(round(images.shape[1] * factor), 1))
    file, colours, alpha = chosen_upscaler(upscaler), rgb(images).contiguous(), alpha_of(images)
    made = resized(colours, size) if file is None else enlarged(colours, size, file)
    return made if alpha is None else torch.cat([made, resized(alpha, size)], dim=-1)


def enlarged(images: torch.Tensor, size: tuple[int, int], file: str) -> torch.Tensor:
    """``images`` (B, H, W, 3) through an upscale model, then at ``size`` (width, height)."""
    remedy = f"Set upscaler to {LANCZOS}, or send a smaller image."
    made = with_memory_errors(f"upscaling with {file}", remedy, lambda: by_model(images, file))
    return resized(made.float().cpu(), size)


def by_model(images: torch.Tensor, file: str) -> torch.Tensor:
    """``images`` through an upscale model, by ComfyUI's own nodes: in tiles, with progress."""
    from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel, UpscaleModelLoader
    from spandrel import UnsupportedModelError

    model = with_misfits(
        f"upscale model {file}",
        "fetch it again, or use another",
        lambda: UpscaleModelLoader.execute(file).args[0],
        UnsupportedModelError,
    )
    mm.throw_exception_if_processing_interrupted()
    return ImageUpscaleWithModel.execute(model, images).args[0]
