"""The pack's errors: what happened, which value, and what to do about it.

ComfyUI reports an exception by its class and its text (``…errors.InvalidParameter: width 1000 is not …``), so a class
here is part of the interface: an HTTP client of ComfyUI uses it to distinguish a wrong value from a full disk.
"""

from __future__ import annotations

from collections.abc import Iterable


class NeuroLuxError(Exception):
    """Base class of every error that this pack raises on purpose."""


class ModelNotFound(NeuroLuxError):
    """The model name is neither in the catalog nor in a model folder of ComfyUI."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(
            f"unknown model {name!r}; known are {', '.join(self.known) or 'none'}. "
            "A diffusers folder in ComfyUI's models/diffusers/ becomes a model with the folder's name."
        )


class WeightsMissing(NeuroLuxError):
    """The model is known, but its files are not on this machine and cannot be fetched from here."""


class DownloadFailed(NeuroLuxError):
    """A download did not finish: network, disk or server. The partial file is kept, and the next attempt resumes it."""


class AccessDenied(NeuroLuxError):
    """The files are gated: the user has not accepted the licence, or there is no token."""


class InvalidParameter(NeuroLuxError):
    """The model or the node does not accept a value. ``field`` is its name in the request."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


class OutOfMemory(NeuroLuxError):
    """The device ran out of memory, even after everything else was unloaded."""


class NotFinite(NeuroLuxError):
    """A stage computed NaN or infinity: an overflow in fp16, or a damaged file."""


class NothingGenerated(NeuroLuxError):
    """A request for many images generated none: every one of them failed."""
