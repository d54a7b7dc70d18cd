"""ControlNets: which are applied to a handle, and the pipeline that samples with them.

Their weights are in the store of modules (memory/module_store.py). The pipelines with ControlNets share the components
of the one without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import torch

from ...catalog.auxiliary import auxiliary_catalog
from ...catalog.models import Model
from ...errors import InvalidParameter
from ...families.parts.placed import derived
from ...families.registry import families, family_of
from ...families.spec import ControlKind, Controls, PipelineClass, Task
from ...images.control_images import fitted
from ...images.pixels import rgb
from ...loading.handle import AppliedControl
from ...loading.loaded import LoadedPipeline
from ...loading.working_memory import decoding_memory
from ...memory.module_store import LoadedModule, ModuleKey, modules
from ...memory.patcher import ComponentPatcher
from ...memory.placement import device_budget
from ...memory.streaming import CPU
from ...memory.vae_tiling import tiling
from ...planning.adapters import control_name
from ...weights.stamps import FileStamp
from ..detect import detect
from .choice import controls_of
from .weights import build_controlnet

if TYPE_CHECKING:
    from ...images.frames import Frame

AUTO_MODE = "auto"
INSTEAD = {
    "fill": (
        "its input is wider by the masked image and the mask, and ControlNets were trained on models without them; "
        "take Apply ControlNet out, or redraw the masked part with flux-dev or sdxl-base, which follow both a mask and "
        "a ControlNet"
    ),
    "edit": (
        "it attends to the image that it edits, and ControlNets were trained on models that see none; take Apply "
        "ControlNet out, or redraw the image (image to image) with flux-dev or sdxl-base, which follow both an "
        "image and a ControlNet"
    ),
}
"""Why models of a purpose take no ControlNet, and what to do instead."""


def mode_choices() -> tuple[str, ...]:
    """Every kind of control image that some family's ControlNets know."""
    known = (family_modes(name) for name, family in families().items() if family.controls is not None)
    return (AUTO_MODE, *dict.fromkeys(mode for modes in known for mode in modes))


def family_modes(family: str) -> tuple[str, ...]:
    """The kinds that the family's union ControlNets count, and those that one of the catalog serves uncounted."""
    listed = (one.kinds for one in auxiliary_catalog().controlnets.values() if one.family == family)
    return tuple(dict.fromkeys([*controls_of(family).modes, *(kind for kinds in listed for kind in kinds)]))


def make_control(
    model: Model, file: FileStamp, image: torch.Tensor, strength: float, start: float, end: float, mode: str
) -> AppliedControl:
    """Check what was asked for. Raises InvalidParameter, or WeightsMissing for a damaged file."""
    check_model(model)
    found = detect("controlnet", file)
    if found.problem is not None:
        raise InvalidParameter("controlnet", f"ControlNet {file.name} cannot be used: {found.problem}")
    if found.family != model.family:
        raise InvalidParameter(
            "controlnet",
            f"ControlNet {file.name} was made for {found.family} and {model.name} is a {model.family} model; "
            f"choose a ControlNet for {model.family}, or load a {found.family} model",
        )
    if not start < end:
        raise InvalidParameter("start", f"start {start:g} is not before end {end:g}; the ControlNet would never act")
    modes = family_modes(model.family)
    if mode != AUTO_MODE and mode not in modes:
        raise InvalidParameter(
            "mode", f"mode {mode!r} is not one of a {model.family} ControlNet; use {', '.join(modes)}"
        )
    pixels = rgb(image).detach().float().cpu().contiguous()
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()
    return AppliedControl(file, mode, strength, start, end, digest, pixels)


def check_model(model: Model) -> None:
    """Raise InvalidParameter for a model that no ControlNet guides, whatever it is asked for."""
    guided = [family.name for family in families().values() if family.controls is not None]
    if model.family not in guided:
        raise InvalidParameter(
            "controlnet",
            f"{model.name} takes no ControlNet: there are some for {', '.join(guided)} models, and it is "
            f"a {model.family} model; take Apply ControlNet out, or load another model",
        )
    if model.purpose in INSTEAD:
        raise InvalidParameter("controlnet", f"{model.name} takes no ControlNet: {INSTEAD[model.purpose]}")


@dataclass(eq=False)
class LoadedControlNet(LoadedModule):
    """A ControlNet's weights, and what they are for."""

    @property
    def union(self) -> bool:
        """Whether one network serves several kinds of images, and must know which it gets."""
        config = self.module.config
        return getattr(config, "num_mode", None) is not None or "num_control_type" in config

    @property
    def reads_pixels(self) -> bool:
        """Whether it takes the image itself (XLabs) instead of its latent."""
        return getattr(self.module, "input_hint_block", None) is not None

    def activation_bytes(self, controls: Controls, width: int, height: int) -> int:
        """Bytes that it hands to the denoiser in each step, for an image of that size."""
        return controls.activations(self.module, width, height) * self.module.dtype.itemsize


def acquire_controlnets(files: Sequence[FileStamp], pipeline: LoadedPipeline) -> list[LoadedControlNet]:
    """``files`` loaded, in their order, a file that comes twice loaded once."""

    def build(key: ModuleKey) -> LoadedControlNet:
        module = build_controlnet(pipeline, key.file, key.dtype)
        return LoadedControlNet(key, module, ComponentPatcher(module, key.device, CPU, blocks=blocks))

    blocks = controls_of(pipeline.model.family).blocks
    dtype, device = pipeline.precision.main, pipeline.device
    return modules.acquire([ModuleKey("controlnet", file, dtype, device) for file in files], build)


class ControlRun:
    """One run of the sampler that ControlNets guide: its pipeline, its arguments, and where its weights are."""

    def __init__(self, pipeline: LoadedPipeline, task: Task) -> None:
        self._pipeline = pipeline
        self._family = family_of(pipeline.model.family)
        self._spec = controls_of(pipeline.model.family)
        self._controls = pipeline.controls
        self._nets = acquire_controlnets([control.file for control in self._controls], pipeline)
        check_together(self._spec, self._nets)
        for control, net in zip(self._controls, self._nets, strict=True):
            check_mode(self._spec, control, net)
        self._task: Task = task
        self._kind: ControlKind = "union" if self._nets[0].union else "plain"
        pipe = pipeline.pipe
        self.pipe: Any = derived(
            pipe,
            self._pipeline_class(),
            self._family.pipeline_options(pipe.config),
            controlnet=self._module(),
        )

    def _pipeline_class(self) -> PipelineClass:
        found = self._family.pipelines.get((self._task, self._kind))
        if found is None:
            others = [one.title for one in families().values() if (self._task, self._kind) in one.pipelines]
            raise InvalidParameter(
                "controlnet",
                f"{self._pipeline.model.name} follows a ControlNet from a prompt alone: {self._family.title} has no "
                f"{self._task} with one; take Apply ControlNet out, or load a model of {', '.join(others)}",
            )
        return found

    @property
    def needs_vae(self) -> bool:
        """Whether the pipeline encodes the control images with the VAE."""
        return self._spec.encodes_images and not self._nets[0].reads_pixels

    def warnings(self, steps: int) -> list[str]:
        """What of the ControlNets has no effect in a run of ``steps``."""
        return [
            without_steps(control, steps)
            for control in self._controls
            if not covered_steps(control.start, control.end, steps)
        ]

    @contextmanager
    def stage(self, names: Sequence[str], working_bytes: int, width: int, height: int) -> Iterator[None]:
        """The pipeline's components ``names`` and the ControlNets on the device, for an image of that size."""
        placement, pipe = self._pipeline.placement, self._pipeline.pipe
        patchers = list({id(net): net.patcher for net in self._nets}.values())
        for index, patcher in enumerate(patchers):  # the manager would give one that is too large all there is
            patcher.budget = device_budget(patcher.residency, placement.planned(control_name(index)))
        needed = working_bytes + sum(net.activation_bytes(self._spec, width, height) for net in self._nets)
        if not self.needs_vae:
            with placement.stage(names, needed, beside=patchers):
                yield
            return
        names = list(dict.fromkeys([*names, "vae"]))
        needed = max(needed, decoding_memory(self._pipeline, width, height))  # encoding an image takes about as much
        tiles = tiling(pipe.vae, placement.plan.vae_tile, pipe.vae_scale_factor)
        with placement.stage(names, needed, beside=patchers), tiles:
            yield

    def arguments(self, index: int, width: int, height: int, frame: Frame | None) -> dict[str, Any]:
        """The pipeline's own arguments for image ``index`` of the batch. ``frame``: of the image that is redrawn."""
        images = [fitted(control.image, index, width, height, frame) for control in self._controls]
        modes = [
            self._spec.modes.get(control.mode) if net.union else None
            for control, net in zip(self._controls, self._nets, strict=True)
        ]
        arguments: dict[str, list[Any]] = {
            self._spec.image_argument(self._kind, self._task): images,
            "controlnet_conditioning_scale": [float(control.strength) for control in self._controls],
            "control_guidance_start": [float(control.start) for control in self._controls],
            "control_guidance_end": [float(control.end) for control in self._controls],
        }
        if self._spec.passes_mode(self._kind):
            arguments["control_mode"] = modes
        if len(self._controls) > 1:
            return arguments
        return {name: values[0] for name, values in arguments.items()}

    def _module(self) -> Any:
        """The only ControlNet, or diffusers' module for several. Shares weights where one file comes twice."""
        modules = [net.module for net in self._nets]
        return modules[0] if len(modules) == 1 else self._spec.combined(self._kind, modules)


def covered_steps(start: float, end: float, steps: int) -> list[int]:
    """The steps, from 0, in which a ControlNet acts: those that lie whole between ``start`` and ``end``.

    The arithmetic is that of the pipelines' own ``controlnet_keep``.
    """
    return [step for step in range(steps) if not (step / steps < start or (step + 1) / steps > end)]


def without_steps(control: AppliedControl, steps: int) -> str:
    """The warning about a ControlNet that never acts."""
    first = next(step for step in range(steps + 1) if step / steps >= control.start)
    remedy = f"set end to {ceil((first + 1) / steps * 1000) / 1000:g} or more"
    if first >= steps:
        remedy = f"set start to {floor((steps - 1) / steps * 1000) / 1000:g} or less"
    enough = next((more for more in range(steps + 1, 1001) if covered_steps(control.start, control.end, more)), None)
    more = "" if enough is None else f", or use {enough} steps"
    return (
        f"ControlNet {control.file.name} had no effect: from {control.start:g} to {control.end:g} it covers none of "
        f"the {steps} steps whole; {remedy}{more}"
    )


def check_together(controls: Controls, nets: Sequence[LoadedControlNet]) -> None:
    """Raise InvalidParameter for ControlNets that no diffusers pipeline runs together."""
    first = nets[0]
    for net in nets[1:]:
        reason = controls.conflict(first.module, net.module)
        if reason is not None:
            raise InvalidParameter(
                "controlnet",
                f"ControlNets {first.file.name} and {net.file.name} cannot act together: {reason}; use two of one kind",
            )


def check_mode(controls: Controls, control: AppliedControl, net: LoadedControlNet) -> None:
    """Raise InvalidParameter where a union ControlNet does not know what the image shows. Others need not know."""
    if not net.union:
        return
    number = controls.modes.get(control.mode)
    kinds = controls.mode_count(net.module.config)
    if number is None or number >= kinds:
        names = ", ".join(name for name, value in controls.modes.items() if value < kinds)
        raise InvalidParameter(
            "mode", f"ControlNet {control.file.name} serves several kinds of images; set its mode to one of {names}"
        )
