"""Nodes that make ComfyUI do what the client must cope with: take long, fail, block, ignore an interrupt."""

import time

import torch
from comfy.utils import ProgressBar
from comfy_execution.graph import ExecutionBlocker
from PIL import Image


class TestSlow:
    """Takes steps of 0.1 s, with progress and a preview each, and heeds interrupts as samplers do."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's own name
        return {"required": {"steps": ("INT", {"default": 10, "max": 1000}), "salt": ("STRING", {"default": ""})}}

    def run(self, steps, salt):
        bar = ProgressBar(steps)
        for step in range(steps):
            time.sleep(0.1)
            bar.update_absolute(step + 1, steps, ("JPEG", Image.new("RGB", (16, 16), (step % 255, 0, 0)), 16))
        return (torch.zeros(1, 16, 16, 3),)


class TestQuiet(TestSlow):
    """The same without a word: no progress, and deaf to interrupts."""

    def run(self, steps, salt):
        time.sleep(steps * 0.1)
        return (torch.zeros(1, 16, 16, 3),)


class TestFail(TestSlow):
    """Raises."""

    def run(self, steps, salt):
        raise ValueError(f"no {salt} today")


class TestBlock(TestSlow):
    """Blocks what depends on it: ComfyUI sends execution_error, and the run goes on."""

    def run(self, steps, salt):
        return (ExecutionBlocker("blocked on purpose"),)


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (TestSlow, TestQuiet, TestFail, TestBlock)}
