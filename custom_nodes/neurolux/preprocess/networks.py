"""The networks that make control images: small (at most 350 MB), and placed by ComfyUI's memory manager.

They compute in fp32, so that an image gives the same map on every device. Their weights are in the store of modules
(memory/module_store.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch

from ..loading.modules import load_module
from ..loading.node_bar import NodeBar
from ..memory.module_store import LoadedModule, ModuleKey, modules
from ..memory.patcher import ComponentPatcher
from ..memory.streaming import CPU
from ..weights.stamps import stamp_folder

WORKING_BYTES = 1_500_000_000
"""Working memory of one image; each network works on one size of its own, whatever the image's."""
REMEDY = "Close what else uses the device, or send a ready control image and set preprocess to false."


@dataclass(eq=False)
class LoadedNetwork(LoadedModule):
    """A network with the processor that prepares its input and reads its output."""

    processor: Any

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.file.path


def acquire_network(folder: Path, model_class: Any) -> LoadedNetwork:
    """The network in ``folder``, loaded as ``model_class`` (a transformers Auto class). Raises WeightsMissing."""

    def build(key: ModuleKey) -> LoadedNetwork:
        module, processor = load_network(key.file.path, model_class)
        return LoadedNetwork(key, module, ComponentPatcher(module, key.device, CPU), processor)

    modules.sweep(kind="preprocessor")  # no handle refers to them, so nobody else does where there is no pipeline
    key = ModuleKey("preprocessor", stamp_folder(folder.name, folder), torch.float32, mm.get_torch_device())
    (found,) = modules.acquire([key], build)
    return found


@contextmanager
def at_work(networks: Sequence[LoadedNetwork]) -> Iterator[None]:
    """``networks`` on the device, together."""
    mm.load_models_gpu([network.patcher for network in networks], memory_required=WORKING_BYTES)
    try:
        yield
    finally:
        for network in networks:
            network.patcher.residency.drop_buffers()


def load_network(folder: Path, model_class: Any) -> tuple[Any, Any]:
    """The network in RAM, in fp32, and its processor. Raises WeightsMissing for a folder that is damaged."""
    from transformers import AutoImageProcessor

    def work() -> tuple[Any, Any]:
        module = model_class.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        return module.eval().requires_grad_(False), processor

    advice = "delete it, and it is fetched again"
    return load_module(str(folder), advice, work, remedy=REMEDY, title=folder.name)


class ImageProgress:
    """Counts the images of a batch on the node, and stops when the user interrupts."""

    def __init__(self, count: int) -> None:
        self._bar = NodeBar(count)

    def check(self) -> None:
        """Raise InterruptProcessingException if the user has interrupted."""
        self._bar.check()

    def step(self) -> None:
        """One more image is done. Raises InterruptProcessingException if the user has interrupted."""
        self._bar.step()
