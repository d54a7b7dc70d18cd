"""A custom node for a ComfyUI under test: it gives it the device of tests/pack/fake_device.py, and tells what is on it.

ComfyUI loads this file by its path, so it finds the other by its own. It comes after the node pack.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest

PACK_MODULE = "neurolux.planning.costs"
spec = importlib.util.spec_from_file_location("fake_device", Path(__file__).parents[1] / "fake_device.py")
assert spec is not None
assert spec.loader is not None
fake_device = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake_device)
[pack] = {name.removesuffix(".planning.costs") for name in sys.modules if name.endswith(PACK_MODULE)}
DEVICE = fake_device.FakeDevice(10**12)
DEVICE.install(pytest.MonkeyPatch(), pack)


class FakeDeviceMemory:
    """Tells what is on the device when a latent comes by, and gives the device another size from then on."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "report"
    OUTPUT_NODE = True
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"samples": ("LATENT",), "memory": ("INT", {"min": 0, "max": 10**12})}}

    def report(self, samples: Any, memory: int) -> dict[str, Any]:
        """``memory``: bytes of the device from now on."""
        models = {
            type(loaded.model.model).__name__: [loaded.model.loaded_size(), loaded.model.model_size()]
            for loaded in mm.current_loaded_models
        }
        DEVICE.memory = memory
        return {"ui": {"models": [models], "free": [DEVICE.free]}, "result": (samples,)}


NODE_CLASS_MAPPINGS = {"FakeDeviceMemory": FakeDeviceMemory}
