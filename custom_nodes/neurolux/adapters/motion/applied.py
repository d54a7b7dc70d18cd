"""Motion adapters (AnimateDiff): what makes an image model generate the frames of a video.

An adapter's weights are in the store of modules (memory/module_store.py). The UNet with motion is diffusers' own class
around the modules of the plain UNet: nothing is copied, so an image and a video are made by the same weights, wherever
the plan has put them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ...errors import InvalidParameter
from ...families.blocks import BlockLists
from ...loading.handle import AppliedMotion
from ...loading.loaded import LoadedPipeline
from ...memory.module_store import LoadedModule, ModuleKey, modules
from ...memory.patcher import ComponentPatcher
from ...memory.streaming import CPU
from ...planning.records import ComponentShape
from ...weights.stamps import FileStamp
from .weights import build_motion_adapter

BLOCKS = BlockLists(("down_blocks", "mid_block", "up_blocks"))
"""Of a motion adapter: its motion modules, level by level."""
SHARED = ("conv_in", "time_proj", "time_embedding", "add_time_proj", "add_embedding", "conv_norm_out", "conv_act")
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class LoadedMotion(LoadedModule):
    """An adapter's weights."""

    @property
    def most_frames(self) -> int:
        """Frames that it attends to at once."""
        return self.module.config.motion_max_seq_length

    @property
    def shape(self) -> ComponentShape:
        """Its size as a plan counts it: it is loaded whole."""
        return ComponentShape(sum(weight.numel() for weight in self.module.parameters()))


def acquire_motion(motion: AppliedMotion, pipeline: LoadedPipeline) -> LoadedMotion:
    """The adapter, loaded. Raises WeightsMissing, and InvalidParameter for one of another model."""

    def build(key: ModuleKey) -> LoadedMotion:
        module = build_motion_adapter(key.file, key.dtype)
        check_fit(pipeline, key.file, module)
        _log.info("NeuroLux: motion adapter %s: %.0f MB", key.file.name, key.file.size / 1e6)
        return LoadedMotion(key, module, ComponentPatcher(module, key.device, CPU, blocks=BLOCKS))

    (found,) = modules.acquire([ModuleKey("motion", motion.file, pipeline.precision.main, pipeline.device)], build)
    return found


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
