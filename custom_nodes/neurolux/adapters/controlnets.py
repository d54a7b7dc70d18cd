"""ControlNets: which are applied to a handle, their weights, and the pipeline that samples with them.

A ControlNet's weights live here, once for every pipeline of the same number format, and are known to ComfyUI's memory
manager like any other component. The pipelines with ControlNets share the components of the one without.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..catalog.models import Model
from ..errors import InvalidParameter
from ..images.control_images import fitted
from ..loading.working_memory import decode_room
from ..memory.patcher import ComponentPatcher, evicted, unload
from ..memory.placement import device_budget
from ..planning.adapters import control_name
from ..weights.stamps import FileStamp
from .control_weights import build_controlnet
from .detect import detect

if TYPE_CHECKING:
    from ..families.placed import ControlKind, Task
    from ..images.frames import Frame
    from ..loading.registry import LoadedPipeline

AUTO_MODE = "auto"
FLUX_MODES = {"canny": 0, "tile": 1, "depth": 2, "blur": 3, "pose": 4, "gray": 5, "low quality": 6}
"""Of InstantX/FLUX.1-dev-Controlnet-Union and Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro (their model cards)."""
SDXL_MODES = {"pose": 0, "depth": 1, "scribble": 2, "canny": 3, "normal": 4, "segments": 5, "tile": 6, "inpaint": 7}
"""Of xinsir/controlnet-union-sdxl-1.0, the last two in its promax version (its model card)."""
MODES = {"flux": FLUX_MODES, "sdxl": SDXL_MODES}
MODE_CHOICES = (AUTO_MODE, *dict.fromkeys([*FLUX_MODES, *SDXL_MODES]))
SDXL_FEATURES_PER_PIXEL = 64
"""Values that an SDXL ControlNet hands to the UNet, with guidance, for each pixel of the image."""
INSTEAD = {
    "fill": (
        "its input is wider by the masked image and the mask, and ControlNets were trained on models without them; "
        "take Apply ControlNet out, or redraw the masked part with flux-dev or sdxl-base, which follow both a mask and "
        "a ControlNet"
    ),
    "edit": (
        "it attends to the image that it edits, and ControlNets were trained on models that see none; take Apply "
        "ControlNet out, or redraw the image (image to image) with flux-dev or sdxl-base, which follow both a "
        "image and a ControlNet"
    ),
}
"""Why models of a purpose take no ControlNet, and what to do instead."""
STORAGE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
MOST_UNUSED = 2
"""ControlNets that no current image uses stay in memory up to this number."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AppliedControl:
    """One ControlNet on a handle, with the image that it follows."""

    file: FileStamp
    mode: str
    strength: float
    start: float
    """Share of the steps after which it begins to act."""
    end: float
    """Share of the steps after which it no longer acts."""
    digest: str
    """Of the image."""
    image: torch.Tensor = field(compare=False, repr=False)
    """(B, H, W, 3) in [0, 1]."""


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
    if mode != AUTO_MODE and mode not in MODES[model.family]:
        raise InvalidParameter(
            "mode",
            f"mode {mode!r} is not one of a {model.family} union ControlNet; use {', '.join(MODES[model.family])}",
        )
    pixels = image[..., :3].detach().float().cpu().contiguous()
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()
    return AppliedControl(file, mode, strength, start, end, digest, pixels)


def check_model(model: Model) -> None:
    """Raise InvalidParameter for a model that no ControlNet guides, whatever it is asked for."""
    if model.family not in MODES:
        raise InvalidParameter(
            "controlnet",
            f"{model.name} takes no ControlNet: there are some for {' and '.join(MODES)} models, and it is "
            f"a {model.family} model; take Apply ControlNet out, or load another model",
        )
    if model.purpose in INSTEAD:
        raise InvalidParameter("controlnet", f"{model.name} takes no ControlNet: {INSTEAD[model.purpose]}")


@dataclass(eq=False)
class LoadedControlNet:
    """A ControlNet's weights, and what the memory manager knows of them."""

    file: FileStamp
    module: Any
    patcher: ComponentPatcher

    @property
    def union(self) -> bool:
        """Whether one network serves several kinds of images, and must be told which."""
        config = self.module.config
        return getattr(config, "num_mode", None) is not None or "num_control_type" in config

    @property
    def reads_pixels(self) -> bool:
        """FLUX: whether it takes the image itself (XLabs) instead of its latent."""
        return getattr(self.module, "input_hint_block", None) is not None

    def activation_bytes(self, width: int, height: int) -> int:
        """Bytes that it hands to the denoiser in each step, for an image of that size."""
        values = width * height * SDXL_FEATURES_PER_PIXEL
        if hasattr(self.module, "controlnet_single_blocks"):  # FLUX: a layer's tokens each, one for 16x16 pixels
            layers = len(self.module.controlnet_blocks) + len(self.module.controlnet_single_blocks)
            values = layers * self.module.inner_dim * (width // 16) * (height // 16)
        return values * self.module.dtype.itemsize


class ControlNets:
    """The loaded ControlNets of this process, least recently used first."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[tuple[FileStamp, torch.dtype, torch.device], LoadedControlNet] = OrderedDict()

    def acquire(self, files: Sequence[FileStamp], pipeline: LoadedPipeline) -> list[LoadedControlNet]:
        """``files`` loaded, in their order, a file that comes twice loaded once."""
        self.sweep(files)
        dtype = pipeline.precision.main
        keys = [(file, dtype, pipeline.device) for file in files]
        for key in keys:
            if key not in self._loaded:
                module = build_controlnet(pipeline, key[0], dtype)
                patcher = ComponentPatcher(module, pipeline.device, torch.device("cpu"))
                self._loaded[key] = LoadedControlNet(key[0], module, patcher)
            self._loaded.move_to_end(key)
        unused = [key for key in self._loaded if key not in keys]
        for key in unused[: max(len(unused) - MOST_UNUSED, 0)]:
            self.drop(key)
        return [self._loaded[key] for key in keys]

    def sweep(self, wanted: Collection[FileStamp] = ()) -> None:
        """Drop what the manager took off its device; on a GPU what is ``wanted`` stays in RAM, for the next image."""
        for key, entry in list(self._loaded.items()):
            unwanted = key[2].type == "cpu" or entry.file not in wanted
            if unwanted and evicted(entry.patcher):
                self.drop(key)

    def drop(self, key: tuple[FileStamp, torch.dtype, torch.device]) -> None:
        """Take one out of memory."""
        entry = self._loaded.pop(key)
        _log.info("NeuroLux: freeing ControlNet %s", entry.file.name)
        unload(entry.patcher)

    def memory(self) -> dict[str, list[dict[str, Any]]]:
        """What is in memory, by file name, as a placement tells it of a pipeline's components."""
        found: dict[str, list[dict[str, Any]]] = {}
        for (file, dtype, _), entry in list(self._loaded.items()):
            patcher = entry.patcher
            found.setdefault(file.name, []).append(
                {
                    "component": "controlnet",
                    "device": str(patcher.current_loaded_device()),
                    "storage": STORAGE_NAMES[dtype],
                    "placement": "stage",
                    "bytes": patcher.residency.total_bytes,
                    "device_bytes": patcher.loaded_size(),
                }
            )
        return found

    def clear(self) -> None:
        """Take all out of memory."""
        for key in list(self._loaded):
            self.drop(key)


class ControlRun:
    """One run of the sampler that ControlNets guide: its pipeline, its arguments, and where its weights are."""

    def __init__(self, pipeline: LoadedPipeline, task: Task) -> None:
        from ..families.placed import PIPELINE_CLASSES, derived

        self._pipeline = pipeline
        self._family = pipeline.model.family
        self._controls = pipeline.controls
        self._nets = controlnets.acquire([control.file for control in self._controls], pipeline)
        check_together(self._family, self._nets)
        for control, net in zip(self._controls, self._nets, strict=True):
            check_mode(self._family, control, net)
        self._task = task
        self._kind: ControlKind = "union" if self._nets[0].union else "plain"
        self.pipe: Any = derived(
            pipeline.pipe, PIPELINE_CLASSES[self._family, self._kind, task], controlnet=self._module()
        )

    @property
    def needs_vae(self) -> bool:
        """Whether the pipeline encodes the control images: FLUX does, but for ControlNets that read pixels."""
        return self._family == "flux" and not self._nets[0].reads_pixels

    @contextmanager
    def stage(self, names: Sequence[str], working_bytes: int, width: int, height: int) -> Iterator[None]:
        """The pipeline's components ``names`` and the ControlNets on the device, for an image of that size."""
        from ..stages.decode import tiling

        placement, pipe = self._pipeline.placement, self._pipeline.pipe
        patchers = list({id(net): net.patcher for net in self._nets}.values())
        for index, patcher in enumerate(patchers):  # the manager would give one that is too large all there is
            patcher.budget = device_budget(patcher.residency, placement.planned(control_name(index)))
        room = working_bytes + sum(net.activation_bytes(width, height) for net in self._nets)
        if not self.needs_vae:
            with placement.stage(names, room, beside=patchers):
                yield
            return
        names = list(dict.fromkeys([*names, "vae"]))
        room = max(room, decode_room(self._pipeline, width, height))  # encoding an image takes about as much
        tiles = tiling(pipe.vae, placement.plan.vae_tile, pipe.vae_scale_factor)
        with placement.stage(names, room, beside=patchers), tiles:
            yield

    @property
    def _image_argument(self) -> str:
        """What the pipeline calls the control images."""
        plain = self._family == "sdxl" and self._kind == "plain" and self._task == "text-to-image"
        return "image" if plain else "control_image"

    def arguments(self, index: int, width: int, height: int, frame: Frame | None) -> dict[str, Any]:
        """The pipeline's own arguments for image ``index`` of the batch. ``frame``: of the image that is redrawn."""
        images = [fitted(control.image, index, width, height, frame) for control in self._controls]
        modes = [
            MODES[self._family].get(control.mode) if net.union else None
            for control, net in zip(self._controls, self._nets, strict=True)
        ]
        arguments: dict[str, list[Any]] = {
            self._image_argument: images,
            "controlnet_conditioning_scale": [float(control.strength) for control in self._controls],
            "control_guidance_start": [float(control.start) for control in self._controls],
            "control_guidance_end": [float(control.end) for control in self._controls],
        }
        if self._family == "flux" or self._kind == "union":
            arguments["control_mode"] = modes
        if len(self._controls) > 1:
            return arguments
        return {name: values[0] for name, values in arguments.items()}

    def _module(self) -> Any:
        """The only ControlNet, or diffusers' module for several. Shares weights where one file comes twice."""
        from diffusers import FluxMultiControlNetModel
        from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
        from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel

        modules = [net.module for net in self._nets]
        if len(modules) == 1:
            return modules[0]
        if self._family == "flux":
            return FluxMultiControlNetModel(modules)
        return MultiControlNetUnionModel(modules) if self._kind == "union" else MultiControlNetModel(modules)


def check_together(family: str, nets: Sequence[LoadedControlNet]) -> None:
    """Raise InvalidParameter for ControlNets that no diffusers pipeline runs together."""
    first = nets[0]
    for net in nets[1:]:
        if family == "sdxl" and net.union != first.union:
            reason = "one is a union ControlNet and the other is not"
        elif family == "flux" and net.reads_pixels != first.reads_pixels:
            reason = "one reads the image itself and the other its latent"
        elif family == "flux" and net.module.config.guidance_embeds != first.module.config.guidance_embeds:
            reason = "one takes the guidance scale and the other does not"
        else:
            continue
        raise InvalidParameter(
            "controlnet",
            f"ControlNets {first.file.name} and {net.file.name} cannot act together: {reason}; use two of one kind",
        )


def check_mode(family: str, control: AppliedControl, net: LoadedControlNet) -> None:
    """Raise InvalidParameter where a union ControlNet is not told what the image is. Others need not know."""
    if not net.union:
        return
    number = MODES[family].get(control.mode)
    config = net.module.config
    kinds = config.num_mode if family == "flux" else config.num_control_type
    if number is None or number >= kinds:
        names = ", ".join(name for name, value in MODES[family].items() if value < kinds)
        raise InvalidParameter(
            "mode", f"ControlNet {control.file.name} serves several kinds of images; set its mode to one of {names}"
        )


controlnets = ControlNets()
"""This process's ControlNets. ComfyUI runs one prompt at a time, so one store serves all."""
