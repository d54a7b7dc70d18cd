"""diffusers' pipeline classes with an explicit device. Each is built from a family's mixins when it is first used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from ..spec import PipelineClass


class Pipeline(Protocol):
    """The attributes that all families' pipelines have in common."""

    components: dict[str, Any]
    config: Any
    scheduler: Any
    vae: Any
    vae_scale_factor: int
    image_processor: Any
    placement_device: torch.device
    on_first_latents: Callable[[torch.Tensor], None] | None
    call_options: dict[str, Any]

    def set_progress_bar_config(self, **options: Any) -> None: ...


@cache
def placed_pipeline() -> type:
    """The mixin of every pipeline: sets its device explicitly, and gives access to the first latents.

    diffusers takes the device of the first component that it finds (``DiffusionPipeline._execution_device``). That is
    wrong as soon as ComfyUI's memory manager has only put the current component on the GPU.
    """
    import torch

    class PlacedPipeline:
        placement_device = torch.device("cpu")
        on_first_latents: Callable[[torch.Tensor], None] | None = None
        """Called with the scheduler's input of the first step, which a preview needs."""

        @property
        def _execution_device(self) -> torch.device:
            return self.placement_device

        def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
            """diffusers' method, with a callback. It draws the noise, so the order of random numbers stays the same."""
            prepared = super().prepare_latents(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
            if self.on_first_latents is not None:
                self.on_first_latents(prepared[0] if isinstance(prepared, tuple) else prepared)
            return prepared

    return PlacedPipeline


@cache
def given_latents() -> type:
    """Mixin for pipelines that only accept pixels: given latents replace the latents that they would encode.

    diffusers' FLUX pipelines with ControlNets encode whatever they get, and its SDXL pipelines multiply it with a mask
    of the image's size. Neither checks its input, so latents fail half-way.
    """

    class GivenLatents:
        given_latents: torch.Tensor | None = None
        """(1, C, h, w), in the denoiser's space."""

        def _encode_vae_image(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            if self.given_latents is not None:
                return self.given_latents.to(image)
            return super()._encode_vae_image(image, generator)  # pyright: ignore[reportAttributeAccessIssue]

    return GivenLatents


@cache
def placed_class(pipeline_class: PipelineClass) -> Any:
    """The diffusers class that ``pipeline_class`` names, with the mixins in front."""
    import diffusers

    base = getattr(diffusers, pipeline_class.name)
    mixins = tuple(mixin() for mixin in pipeline_class.mixins)
    content = {"__doc__": base.__doc__, "call_options": dict(pipeline_class.options)}
    return type(f"Placed{pipeline_class.name}", (*mixins, placed_pipeline(), base), content)


def derived(pipe: Any, pipeline_class: PipelineClass, options: dict[str, Any], **added: Any) -> Any:
    """A pipeline of another class that shares the components of ``pipe``, plus ``added`` ones. Copies nothing.

    ``DiffusionPipeline.from_pipe`` does not work here: it removes hooks from the components and may cast them.
    ``options`` are the family's constructor arguments; those that this class does not accept are left out.
    """
    model_class = placed_class(pipeline_class)
    names = inspect.signature(model_class.__init__).parameters
    components = {name: part for name, part in pipe.components.items() if name in names}
    chosen = {name: value for name, value in options.items() if name in names and name not in components}
    made = model_class(**{**components, **chosen, **added})
    made.set_progress_bar_config(disable=True)
    made.placement_device = pipe.placement_device
    return made
