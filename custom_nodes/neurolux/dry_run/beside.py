"""Modules of published size that work beside a model in a dry run: a ControlNet, a motion adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import MotionAdapter
from PIL import Image

from ..adapters.control import applied as controlnets
from ..adapters.control.applied import LoadedControlNet
from ..adapters.control.choice import controls_of
from ..adapters.motion.applied import BLOCKS, LoadedMotion
from ..families.spec import Controls
from ..loading import replanning
from ..loading.handle import AppliedControl
from ..loading.loaded import LoadedPipeline
from ..memory.module_store import ModuleKey, modules
from ..memory.patcher import ComponentPatcher
from ..memory.streaming import CPU
from ..memory.units import split_into_blocks
from ..planning.records import ComponentShape
from ..weights.stamps import FileStamp
from .tensors import no_modes

CONTROL_FILE = FileStamp("a ControlNet", Path("controlnet.safetensors"), 0, 0)


def simulated(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    """The module that ``make`` makes, its weights without numbers, in RAM."""
    with no_modes(), torch.device("meta"):
        module = make()
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(torch.empty(weight.shape, dtype=dtype), requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=dtype)
    return module.eval()


def acquire_simulated_motion(loaded: LoadedPipeline, file: FileStamp) -> None:
    """A motion adapter of the model's size in the store of modules."""
    unet: Any = loaded.denoiser

    def make() -> Any:
        channels = unet.config.block_out_channels
        return MotionAdapter(block_out_channels=channels, motion_mid_block_layers_per_block=1)

    def build(key: ModuleKey) -> LoadedMotion:
        module = simulated(make, key.dtype)
        return LoadedMotion(key, module, ComponentPatcher(module, key.device, CPU, blocks=BLOCKS))

    modules.acquire([ModuleKey("motion", file, loaded.precision.main, loaded.device)], build)


@contextmanager
def controlled(loaded: LoadedPipeline, side: int) -> Iterator[None]:
    """A ControlNet of published size guides ``loaded`` meanwhile, by an image of ``side`` pixels."""
    spec = controls_of(loaded.model.family)

    def build(key: ModuleKey) -> LoadedControlNet:
        module = simulated(lambda: spec.make(loaded.denoiser), key.dtype)
        return LoadedControlNet(key, module, ComponentPatcher(module, key.device, CPU, blocks=spec.blocks))

    key = ModuleKey("controlnet", CONTROL_FILE, loaded.precision.main, loaded.device)
    (net,) = modules.acquire([key], build)
    shape = control_shape(net.module, spec)
    loaded.controls = (AppliedControl(CONTROL_FILE, "auto", 1.0, 0.0, 1.0, "", torch.empty(1, side, side, 3)),)

    def fitted(images: Any, index: int, width: int, height: int, frame: Any = None) -> Image.Image:
        return Image.new("RGB", (width, height))

    def known_shape(file: FileStamp, family: str) -> ComponentShape:
        return shape

    try:
        with (
            mock.patch.object(replanning, "shape_of_control", known_shape),
            mock.patch.object(controlnets, "fitted", fitted),
        ):
            yield
    finally:
        loaded.controls = ()


def control_shape(module: Any, spec: Controls) -> ComponentShape:
    """A ControlNet as a plan counts it."""
    _, units = split_into_blocks(module, spec.blocks)
    blocks = tuple(sum(slot.home.numel() for slot in unit.slots) for unit in units)
    _, values, needs_vae = spec.published
    parameters = sum(weight.numel() for weight in module.parameters())
    return ComponentShape(parameters, blocks, values_per_token=values, needs_vae=needs_vae)
