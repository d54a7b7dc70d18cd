"""diffusers' pipeline classes, told where to compute: made of a family's names and mixins when they are first used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from .spec import PipelineClass


class Pipeline(Protocol):
    """What the pack uses of every family's pipeline; the rest differs."""

    components: dict[str, Any]
    config: Any
    scheduler: Any
    vae: Any
    vae_scale_factor: int
    image_processor: Any
    placement_device: torch.device
    on_first_latents: Callable[[torch.Tensor], None] | None

    def set_progress_bar_config(self, **options: Any) -> None: ...


@cache
def placed_pipeline() -> type:
    """The mixin of every pipeline: its device is told, not guessed, and its first latents can be looked at.

    diffusers takes the device of the first component that it finds, which is wrong as soon as ComfyUI's memory
    manager has put only the component of the moment on the GPU (``DiffusionPipeline._execution_device``).
    """
    import torch

    class PlacedPipeline:
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

    return PlacedPipeline


@cache
def given_latents() -> type:
    """Mixin for pipelines that begin with pixels only: latents that are given stand in for what they would encode.

    diffusers' FLUX pipelines with ControlNets encode whatever they get, and its SDXL ones multiply it with a mask of
    the image's size. Neither checks: latents fail in the middle.
    """

    class GivenLatents:
        given_latents: torch.Tensor | None = None
        """As the denoiser takes them, (1, C, h, w)."""

        def _encode_vae_image(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            if self.given_latents is not None:
                return self.given_latents.to(image)
            return super()._encode_vae_image(image, generator)  # pyright: ignore[reportAttributeAccessIssue]

    return GivenLatents


@cache
def placed_class(wanted: PipelineClass) -> Any:
    """The diffusers class that ``wanted`` names, with the mixins in front."""
    import diffusers

    base = getattr(diffusers, wanted.name)
    mixins = tuple(mixin() for mixin in wanted.mixins)
    return type(f"Placed{wanted.name}", (*mixins, placed_pipeline(), base), {"__doc__": base.__doc__})


def derived(pipe: Any, wanted: PipelineClass, options: dict[str, Any], **added: Any) -> Any:
    """A ``wanted`` pipeline over the components of ``pipe`` themselves, and ``added`` ones; nothing is copied.

    Not ``from_pipe``: it takes hooks off the components and may cast them (DiffusionPipeline.from_pipe). ``options``
    are the family's for its pipelines' constructors; those that this class does not take are left out.
    """
    model_class = placed_class(wanted)
    names = inspect.signature(model_class.__init__).parameters
    components = {name: part for name, part in pipe.components.items() if name in names}
    chosen = {name: value for name, value in options.items() if name in names and name not in components}
    made = model_class(**{**components, **chosen, **added})
    made.set_progress_bar_config(disable=True)
    made.placement_device = pipe.placement_device
    return made
