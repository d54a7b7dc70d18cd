"""Files into a diffusers pipeline. The only module that imports diffusers when it is imported: import it late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, FluxPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from ..catalog import Model
from ..errors import WeightsMissing
from .diffusers_folder import WEIGHTS
from .precision import Precision
from .sources import ResolvedFiles


class PlacedPipeline:
    """Mixin: the device to compute on is told, not guessed.

    diffusers takes the device of the first component that it finds, which is wrong as soon as ComfyUI's memory
    manager has put only the component of the moment on the GPU (``DiffusionPipeline._execution_device``).
    """

    placement_device = torch.device("cpu")

    @property
    def _execution_device(self) -> torch.device:
        return self.placement_device


class PlacedFluxPipeline(PlacedPipeline, FluxPipeline):
    """FluxPipeline on the device that ComfyUI computes on."""


class PlacedSDXLPipeline(PlacedPipeline, StableDiffusionXLPipeline):
    """StableDiffusionXLPipeline on the device that ComfyUI computes on."""


Pipeline = PlacedFluxPipeline | PlacedSDXLPipeline


def build_pipeline(model: Model, variant: int | None, files: ResolvedFiles, precision: Precision) -> Pipeline:
    """Load ``model`` into RAM. Raises WeightsMissing for files that are there but damaged.

    ComfyUI runs nodes in inference mode; weights made there could never be changed again (pytorch issue 125989), so
    loading steps out of it.
    """
    with torch.inference_mode(False), torch.no_grad():
        parts = replaced_parts(model, variant, files, precision)
        try:
            pipeline = load_folder(model, files.pipeline, precision, parts)
        except (OSError, ValueError) as error:
            raise WeightsMissing(
                f"model {model.name!r}: {files.pipeline} cannot be loaded ({error}); fetch its files again"
            ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_folder(model: Model, folder: Path, precision: Precision, parts: dict[str, Any]) -> Pipeline:
    """The pipeline in ``folder`` with ``parts`` in place of its own."""
    dtypes = {
        "default": precision.main,
        "text_encoder": precision.text_encoders,
        "text_encoder_2": precision.text_encoders,
        "vae": precision.vae,
    }
    variant = getattr(model.source, "variant", None)
    common: dict[str, Any] = {"dtype": dtypes, "variant": variant, "local_files_only": True, **parts}
    if model.family == "flux":
        return PlacedFluxPipeline.from_pretrained(folder, **common)
    # The invisible watermark would be drawn by plain diffusers only where its package happens to be installed.
    return PlacedSDXLPipeline.from_pretrained(folder, add_watermarker=False, **common)


def replaced_parts(model: Model, variant: int | None, files: ResolvedFiles, precision: Precision) -> dict[str, Any]:
    """The components that do not come from the pipeline's own folder."""
    parts: dict[str, Any] = {}
    if files.checkpoint is not None:
        parts["unet"] = load_unet(files.pipeline / "unet", files.checkpoint, precision.main)
    if files.vae is not None:
        parts["vae"] = AutoencoderKL.from_pretrained(files.vae, dtype=precision.vae, local_files_only=True)
    if model.scheduler is not None:
        scheduler_class = getattr(diffusers, model.scheduler.class_name)
        config = dict(scheduler_class.load_config(files.pipeline / "scheduler"))
        changes = {**model.scheduler.config}
        if variant is not None and variant in model.checkpoints:
            changes.update(model.checkpoints[variant].scheduler)
        parts["scheduler"] = scheduler_class.from_config(config, **changes)
    return parts


def load_unet(config_folder: Path, checkpoint: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    """A UNet of the base model's shape with a checkpoint's weights (ByteDance/SDXL-Lightning has diffusers keys)."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(config_folder))
    unet.load_state_dict(load_file(checkpoint), assign=True)
    return unet.to(dtype).eval().requires_grad_(False)


def weight_files(files: ResolvedFiles) -> list[Path]:
    """Every weight file that ``build_pipeline`` will read."""
    own = [path for path in files.pipeline.rglob("*") if path.suffix in WEIGHTS and path.is_file()]
    if files.checkpoint is not None:
        own = [path for path in own if path.parent.name != "unet"] + [files.checkpoint]
    if files.vae is not None:
        own = [path for path in own if path.parent.name != "vae"] + [*files.vae.glob("*.safetensors")]
    return own


def vae_must_upcast(files: ResolvedFiles) -> bool:
    """Whether the VAE's config asks for fp32 (``force_upcast``; true where it does not say, as in diffusers)."""
    folder = files.vae or files.pipeline / "vae"
    return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("force_upcast", True))
