"""The GPU benchmark's dry run uses ComfyUI's modules in this process."""

from __future__ import annotations

from tests.pack.conftest import comfy_modules

__all__ = ["comfy_modules"]
