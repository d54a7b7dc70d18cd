"""The networks that make control images, in memory: loaded once, placed and evicted by ComfyUI's memory manager.

They are small (at most 350 MB) and compute in fp32, so that an image gives the same map on every device.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import torch

from ..loading.modules import load_module
from ..memory.patcher import ComponentPatcher, evicted, unload

MOST_UNUSED = 3
"""Networks that no current image uses stay in memory up to this number."""
WORKING_BYTES = 1_500_000_000
"""Room for the activations of one image; each network works on one size of its own, whatever the image's."""
REMEDY = "Close what else uses the device, or send a ready control image and set preprocess to false."
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class LoadedNetwork:
    """A network with the processor that prepares its input and reads its output."""

    folder: Path
    stamp: int
    module: Any
    processor: Any
    patcher: ComponentPatcher


class PreprocessModels:
    """The loaded networks of this process, least recently used first."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[Path, LoadedNetwork] = OrderedDict()

    def acquire(self, folder: Path, model_class: Any) -> LoadedNetwork:
        """The network in ``folder``, loaded as ``model_class`` (a transformers Auto class). Raises WeightsMissing."""
        self.sweep()
        stamp = max(path.stat().st_mtime_ns for path in folder.iterdir())
        known = self._loaded.get(folder)
        if known is not None and known.stamp == stamp:
            self._loaded.move_to_end(folder)
            return known
        if known is not None:
            self.drop(folder)
        module, processor = load_network(folder, model_class)
        patcher = ComponentPatcher(module, mm.get_torch_device(), torch.device("cpu"))
        self._loaded[folder] = LoadedNetwork(folder, stamp, module, processor, patcher)
        for old in list(self._loaded)[: max(len(self._loaded) - 1 - MOST_UNUSED, 0)]:
            self.drop(old)
        return self._loaded[folder]

    def sweep(self) -> None:
        """Drop what the manager took off the device (``/free``, an eviction)."""
        for folder, entry in list(self._loaded.items()):
            if evicted(entry.patcher):
                self.drop(folder)

    def drop(self, folder: Path) -> None:
        """Take one out of memory."""
        _log.info("NeuroLux: freeing %s", folder.name)
        unload(self._loaded.pop(folder).patcher)

    def memory(self) -> dict[Path, int]:
        """Bytes on the device by folder."""
        return {folder: entry.patcher.loaded_size() for folder, entry in list(self._loaded.items())}

    @contextmanager
    def stage(self, networks: Sequence[LoadedNetwork]) -> Iterator[None]:
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
        self._bar = comfy.utils.ProgressBar(count)

    def check(self) -> None:
        """Raise InterruptProcessingException if the user has interrupted."""
        mm.throw_exception_if_processing_interrupted()

    def step(self) -> None:
        """One more image is done. Raises InterruptProcessingException if the user has interrupted."""
        self._bar.update(1)


preprocess_models = PreprocessModels()
"""This process's networks. ComfyUI runs one prompt at a time, so one store serves all."""
