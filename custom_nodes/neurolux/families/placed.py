"""The diffusers pipeline classes that images are made with, each in one place, told where to compute.

Like load.py this imports diffusers when it is imported: import it late.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from diffusers import (
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    DiffusionPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionImg2ImgPipeline,
    StableDiffusionXLControlNetUnionInpaintPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

Task = Literal["text-to-image", "image-to-image", "inpaint", "fill", "edit"]
"""What is asked for. ``fill`` is inpainting by a model that was trained for it, ``edit`` following an instruction."""
ControlKind = Literal["plain", "union"]
"""SDXL has a pipeline of its own for union ControlNets; FLUX runs both kinds with one."""


class PlacedPipeline:
    """Mixin: the device to compute on is told, not guessed, and the first latents can be looked at.

    diffusers takes the device of the first component that it finds, which is wrong as soon as ComfyUI's memory
    manager has put only the component of the moment on the GPU (``DiffusionPipeline._execution_device``).
    """

    placement_device = torch.device("cpu")
    on_first_latents: Callable[[torch.Tensor], None] | None = None
    """Called with what the first step begins from, as the scheduler sees it; a preview needs it."""

    @property
    def _execution_device(self) -> torch.device:
        return self.placement_device

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        """diffusers' own; the image's noise is drawn in it, at its place in the order of what is drawn."""
        prepared = super().prepare_latents(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.on_first_latents is not None:
            self.on_first_latents(prepared[0] if isinstance(prepared, tuple) else prepared)
        return prepared


class LatentsForImage(PlacedPipeline):
    """Mixin for pipelines that begin with pixels only: latents that are given stand in for what they would encode.

    diffusers' FLUX pipelines with ControlNets encode whatever they get, and its SDXL ones multiply it with a mask of
    the image's size. Neither checks: latents fail in the middle.
    """

    given_latents: torch.Tensor | None = None
    """As the denoiser takes them, (1, C, h, w)."""

    def _encode_vae_image(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.given_latents is not None:
            return self.given_latents.to(image)
        return super()._encode_vae_image(image, generator)  # pyright: ignore[reportAttributeAccessIssue]


class MaskAlone(PlacedPipeline):
    """Mixin for FLUX pipelines that inpaint by blending: the mask's latents without those of the masked image.

    diffusers encodes the masked image last of all, and the result goes nowhere.
    """

    vae_scale_factor: int
    _pack_latents: Callable[..., torch.Tensor]

    def prepare_mask_latents(
        self,
        mask: torch.Tensor,
        masked_image: torch.Tensor,
        batch_size: int,
        num_channels_latents: int,
        num_images_per_prompt: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """diffusers' mask, packed like the latents: one pixel of ``mask`` (1, 1, H, W) for each latent pixel."""
        cells = self.vae_scale_factor * 2
        height, width = 2 * (height // cells), 2 * (width // cells)
        mask = torch.nn.functional.interpolate(mask, size=(height, width)).to(device=device, dtype=dtype)
        batch = batch_size * num_images_per_prompt
        mask = mask.repeat(batch // len(mask), num_channels_latents, 1, 1)
        packed = self._pack_latents(mask, batch, num_channels_latents, height, width)
        return packed, packed


class PlacedFluxPipeline(PlacedPipeline, FluxPipeline):
    """FluxPipeline on the device that ComfyUI computes on.

    Its LoRA loader does not compare shapes with the weights: stored ones (quantize.py) are in no state dict under that
    name, and making each would take long. adapters.py has refused what is too wide, and peft refuses all else.
    """

    @classmethod
    def _maybe_expand_transformer_param_shape_or_error_(cls, *_: object, **__: object) -> bool:
        return False

    @classmethod
    def _maybe_expand_lora_state_dict(cls, transformer: Any, lora_state_dict: dict[str, Any]) -> dict[str, Any]:
        return lora_state_dict


class PlacedFluxImg2ImgPipeline(PlacedPipeline, FluxImg2ImgPipeline):
    """FluxImg2ImgPipeline on the device that ComfyUI computes on."""


class PlacedFluxInpaintPipeline(MaskAlone, FluxInpaintPipeline):
    """FluxInpaintPipeline on the device that ComfyUI computes on."""


class PlacedFluxFillPipeline(PlacedPipeline, FluxFillPipeline):
    """FluxFillPipeline on the device that ComfyUI computes on."""


class PlacedFluxKontextPipeline(PlacedPipeline, FluxKontextPipeline):
    """FluxKontextPipeline on the device that ComfyUI computes on."""


class PlacedFluxControlNetPipeline(PlacedPipeline, FluxControlNetPipeline):
    """FluxControlNetPipeline on the device that ComfyUI computes on."""


class PlacedSDXLPipeline(PlacedPipeline, StableDiffusionXLPipeline):
    """StableDiffusionXLPipeline on the device that ComfyUI computes on."""


class PlacedSDXLImg2ImgPipeline(PlacedPipeline, StableDiffusionXLImg2ImgPipeline):
    """StableDiffusionXLImg2ImgPipeline on the device that ComfyUI computes on."""


class PlacedSDXLInpaintPipeline(PlacedPipeline, StableDiffusionXLInpaintPipeline):
    """StableDiffusionXLInpaintPipeline on the device that ComfyUI computes on."""


class PlacedSD15Pipeline(PlacedPipeline, StableDiffusionPipeline):
    """StableDiffusionPipeline (1.5) on the device that ComfyUI computes on."""


class PlacedAnimateDiffPipeline(PlacedPipeline, AnimateDiffPipeline):
    """AnimateDiffPipeline on the device that ComfyUI computes on."""


class PlacedAnimateDiffSDXLPipeline(PlacedPipeline, AnimateDiffSDXLPipeline):
    """AnimateDiffSDXLPipeline on the device that ComfyUI computes on."""


class PlacedSDXLControlNetPipeline(PlacedPipeline, StableDiffusionXLControlNetPipeline):
    """StableDiffusionXLControlNetPipeline on the device that ComfyUI computes on."""


class PlacedSDXLControlNetUnionPipeline(PlacedPipeline, StableDiffusionXLControlNetUnionPipeline):
    """StableDiffusionXLControlNetUnionPipeline on the device that ComfyUI computes on."""


class PlacedFluxControlNetImg2ImgPipeline(LatentsForImage, FluxControlNetImg2ImgPipeline):
    """FluxControlNetImg2ImgPipeline on the device that ComfyUI computes on."""


class PlacedFluxControlNetInpaintPipeline(LatentsForImage, MaskAlone, FluxControlNetInpaintPipeline):
    """FluxControlNetInpaintPipeline on the device that ComfyUI computes on."""


class PlacedSDXLControlNetImg2ImgPipeline(PlacedPipeline, StableDiffusionXLControlNetImg2ImgPipeline):
    """StableDiffusionXLControlNetImg2ImgPipeline on the device that ComfyUI computes on."""


class PlacedSDXLControlNetInpaintPipeline(LatentsForImage, StableDiffusionXLControlNetInpaintPipeline):
    """StableDiffusionXLControlNetInpaintPipeline on the device that ComfyUI computes on."""


class PlacedSDXLControlNetUnionImg2ImgPipeline(PlacedPipeline, StableDiffusionXLControlNetUnionImg2ImgPipeline):
    """StableDiffusionXLControlNetUnionImg2ImgPipeline on the device that ComfyUI computes on."""


class PlacedSDXLControlNetUnionInpaintPipeline(LatentsForImage, StableDiffusionXLControlNetUnionInpaintPipeline):
    """StableDiffusionXLControlNetUnionInpaintPipeline on the device that ComfyUI computes on."""


Pipeline = PlacedFluxPipeline | PlacedSDXLPipeline | PlacedSD15Pipeline
P = TypeVar("P", bound=DiffusionPipeline)

PIPELINE_CLASSES: dict[tuple[str, ControlKind | None, Task], type[DiffusionPipeline]] = {
    ("flux", None, "text-to-image"): PlacedFluxPipeline,
    ("flux", None, "image-to-image"): PlacedFluxImg2ImgPipeline,
    ("flux", None, "inpaint"): PlacedFluxInpaintPipeline,
    ("flux", None, "fill"): PlacedFluxFillPipeline,
    ("flux", None, "edit"): PlacedFluxKontextPipeline,
    ("flux", "plain", "text-to-image"): PlacedFluxControlNetPipeline,
    ("flux", "union", "text-to-image"): PlacedFluxControlNetPipeline,
    ("flux", "plain", "image-to-image"): PlacedFluxControlNetImg2ImgPipeline,
    ("flux", "union", "image-to-image"): PlacedFluxControlNetImg2ImgPipeline,
    ("flux", "plain", "inpaint"): PlacedFluxControlNetInpaintPipeline,
    ("flux", "union", "inpaint"): PlacedFluxControlNetInpaintPipeline,
    ("sdxl", None, "text-to-image"): PlacedSDXLPipeline,
    ("sd15", None, "text-to-image"): PlacedSD15Pipeline,
    ("sdxl", None, "image-to-image"): PlacedSDXLImg2ImgPipeline,
    ("sdxl", None, "inpaint"): PlacedSDXLInpaintPipeline,
    ("sdxl", "plain", "text-to-image"): PlacedSDXLControlNetPipeline,
    ("sdxl", "union", "text-to-image"): PlacedSDXLControlNetUnionPipeline,
    ("sdxl", "plain", "image-to-image"): PlacedSDXLControlNetImg2ImgPipeline,
    ("sdxl", "plain", "inpaint"): PlacedSDXLControlNetInpaintPipeline,
    ("sdxl", "union", "image-to-image"): PlacedSDXLControlNetUnionImg2ImgPipeline,
    ("sdxl", "union", "inpaint"): PlacedSDXLControlNetUnionInpaintPipeline,
}
"""The class by family, by the kind of ControlNets (None: without), and by what is asked for."""


def derived(pipe: DiffusionPipeline, wanted: type[P], **added: Any) -> P:
    """A ``wanted`` pipeline over the components of ``pipe`` themselves, and ``added`` ones; nothing is copied.

    Not ``wanted.from_pipe``: it takes hooks off the components and may cast them (DiffusionPipeline.from_pipe).
    """
    names = inspect.signature(wanted.__init__).parameters
    components = {name: part for name, part in pipe.components.items() if name in names}
    options: dict[str, Any] = {}
    if "force_zeros_for_empty_prompt" in names:
        options["force_zeros_for_empty_prompt"] = pipe.config["force_zeros_for_empty_prompt"]
    if "add_watermarker" in names:
        # The invisible watermark would be drawn by plain diffusers only where its package happens to be installed.
        options["add_watermarker"] = False
    made = wanted(**{**components, **options, **added})
    made.set_progress_bar_config(disable=True)
    made.placement_device = pipe.placement_device  # pyright: ignore[reportAttributeAccessIssue]
    return made
