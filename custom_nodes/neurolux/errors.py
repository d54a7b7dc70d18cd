"""The pack's errors: what happened, which value, and what to do about it.

ComfyUI reports an exception by its class and its text (``…errors.InvalidParameter: width 1000 is not …``), so a class
here is part of the interface: whoever drives ComfyUI over HTTP tells a wrong value from a full disk by it.
"""

from __future__ import annotations

from collections.abc import Iterable


class NeuroLuxError(Exception):
    """Root of every error that this pack raises on purpose."""


class ModelNotFound(NeuroLuxError):
    """A model name that neither the catalog nor a folder of ComfyUI knows."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(
            f"unknown model {name!r}; known are {', '.join(self.known) or 'none'}. "
            "A diffusers folder placed in ComfyUI's models/diffusers/ is a model under its folder's name."
        )


class WeightsMissing(NeuroLuxError):
    """The model is known, but its files are not on this machine and cannot be fetched from here."""


class DownloadFailed(NeuroLuxError):
    """A download started and did not finish: network, disk or server. What arrived is kept and resumed."""


class AccessDenied(NeuroLuxError):
    """The files are gated: the licence is not accepted yet, or no token was given."""


class InvalidParameter(NeuroLuxError):
    """A value that the model or the node cannot take. ``field`` is the request's name for it."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


class OutOfMemory(NeuroLuxError):
    """The device's memory did not suffice, even after everything else was unloaded."""


class NothingGenerated(NeuroLuxError):
    """Many images were asked for, and each of them failed in a way of its own."""
