"""The progress bar of the node that ComfyUI runs."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.utils
from PIL import Image

Preview = tuple[str, Image.Image, int]
"""As ComfyUI's bar takes it: format, image, the longest side to show."""


class NodeBar:
    """The bar for one phase of a node's work, with an optional preview image. Stops the work when the user interrupts.

    ComfyUI's own bar raises too. But newer ones drop updates that add little or come fast, and with them the interrupt,
    and all that go back (``comfy/utils.py``, ``ProgressBar``). So a phase that begins again at zero has its own bar.
    """

    def __init__(self, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)

    def check(self) -> None:
        """Raise InterruptProcessingException if the user has interrupted."""
        mm.throw_exception_if_processing_interrupted()

    def show(self, done: int, total: int | None = None, preview: Preview | None = None) -> None:
        """``done`` of ``total`` are done. Raises InterruptProcessingException."""
        self.check()
        self._bar.update_absolute(done, total, preview)

    def step(self) -> None:
        """One more is done. Raises InterruptProcessingException."""
        self.show(self._bar.current + 1)
