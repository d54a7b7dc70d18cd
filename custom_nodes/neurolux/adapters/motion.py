"""Motion adapters (AnimateDiff): what makes an image model draw the frames of a video.

An adapter's weights live here, once for every pipeline of the same number format, and are known to ComfyUI's memory
manager. The UNet with motion is diffusers' own class around the modules of the plain UNet: nothing is copied, so an
image and a video are made by the same weights, wherever the plan has put them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InvalidParameter
from ..memory.patcher import ComponentPatcher, evicted, unload
from ..weights.stamps import FileStamp
from .motion_weights import build_motion_adapter

if TYPE_CHECKING:
    from ..loading.registry import LoadedPipeline

SHARED = ("conv_in", "time_proj", "time_embedding", "add_time_proj", "add_embedding", "conv_norm_out", "conv_act")
MOST_UNUSED = 1
"""Adapters that the present video does not use stay in memory up to this number."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AppliedMotion:
    """The motion adapter on a handle, and how videos are made with it."""

    file: FileStamp
    scheduler: str
    """Class name in diffusers."""
    schedule: Mapping[str, Any] = field(hash=False)
    """What the scheduler's configuration has beyond the model's own."""
    steps: int
    """What a request gets that does not say."""
    guidance: float
    only_steps: int | None = None
    """The number of steps that a distilled adapter was made for."""


@dataclass(eq=False)
class LoadedMotion:
    """An adapter's weights, and what the memory manager knows of them."""

    file: FileStamp
    module: Any
    patcher: ComponentPatcher

    @property
    def most_frames(self) -> int:
        """Frames that it attends to at once."""
        return self.module.config.motion_max_seq_length


class MotionAdapters:
    """The loaded motion adapters of this process, least recently used first."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[tuple[FileStamp, torch.dtype, torch.device], LoadedMotion] = OrderedDict()

    def acquire(self, motion: AppliedMotion, pipeline: LoadedPipeline) -> LoadedMotion:
        """The adapter, loaded. Raises WeightsMissing, and InvalidParameter for one of another model."""
        self.sweep()
        key = (motion.file, pipeline.precision.main, pipeline.device)
        if key not in self._loaded:
            module = build_motion_adapter(motion.file, pipeline.precision.main)
            check_fit(pipeline, motion.file, module)
            patcher = ComponentPatcher(module, pipeline.device, torch.device("cpu"))
            self._loaded[key] = LoadedMotion(motion.file, module, patcher)
            _log.info("NeuroLux: motion adapter %s: %.0f MB", motion.file.name, motion.file.size / 1e6)
        self._loaded.move_to_end(key)
        for unused in list(self._loaded)[: -1 - MOST_UNUSED]:
            self.drop(unused)
        return self._loaded[key]

    def sweep(self) -> None:
        """Drop what the manager took off its device, where that device is RAM."""
        for key, entry in list(self._loaded.items()):
            if key[2].type == "cpu" and evicted(entry.patcher):
                self.drop(key)

    def drop(self, key: tuple[FileStamp, torch.dtype, torch.device]) -> None:
        """Take one out of memory."""
        unload(self._loaded.pop(key).patcher)


def check_fit(pipeline: LoadedPipeline, file: FileStamp, module: Any) -> None:
    """Raise InvalidParameter where the adapter's layers cannot stand in the model's UNet."""
    unet: Any = pipeline.denoiser
    ours = (list(unet.config.block_out_channels), unet.config.layers_per_block)
    theirs = (list(module.config.block_out_channels), module.config.motion_layers_per_block)
    if ours != theirs:
        raise InvalidParameter(
            "motion",
            f"motion adapter {file.name} has levels of {theirs[0]} channels and {pipeline.model.name} of {ours[0]}; "
            f"choose one that was made for {pipeline.model.family}",
        )


def motion_unet(unet: Any, adapter: Any) -> Any:
    """``unet`` with the motion modules of ``adapter``: a ``UNetMotionModel`` of their own modules, without a copy.

    diffusers' ``from_unet2d`` would copy all weights, and forgets SDXL's ``add_embedding``, which stays random there.
    """
    from accelerate import init_empty_weights
    from diffusers import UNetMotionModel

    described: Any = SimpleNamespace(config=adapter.config, to=lambda **_: None)  # it would be moved off its device
    with init_empty_weights():
        joined: Any = UNetMotionModel.from_unet2d(unet, described, load_weights=False)
    for name in SHARED:
        if getattr(unet, name, None) is not None:
            setattr(joined, name, getattr(unet, name))
    joined.conv_out = unet.conv_out
    levels = [
        *zip(joined.down_blocks, unet.down_blocks, adapter.down_blocks, strict=True),
        *zip(joined.up_blocks, unet.up_blocks, adapter.up_blocks, strict=True),
        (joined.mid_block, unet.mid_block, adapter.mid_block),
    ]
    for level, plain, motion in levels:
        for name in ("resnets", "attentions", "downsamplers", "upsamplers"):
            if getattr(plain, name, None) is not None:
                setattr(level, name, getattr(plain, name))
        if motion is not None:
            level.motion_modules = motion.motion_modules
    return joined.eval()


motion_adapters = MotionAdapters()
"""This process's motion adapters. ComfyUI runs one prompt at a time, so one store serves all."""
