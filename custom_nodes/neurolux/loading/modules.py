"""Loads modules that work beside a pipeline's own. Errors name a file that is damaged or of another kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import WeightsMissing
from ..memory.out_of_memory import with_memory_errors

T = TypeVar("T")
REMEDY = "Close other programs that use memory, or choose a smaller number format (precision bf16)."
LONGEST_REASON = 400
MISFITS = (ValueError, KeyError, RuntimeError, TypeError, OSError, AttributeError)
"""What diffusers, transformers, spandrel and torch raise for weights that do not fit their configuration."""


def load_module(what: str, advice: str, work: Callable[[], T], *, remedy: str = REMEDY, title: str | None = None) -> T:
    """Run ``work``, which loads the files of ``what``, outside inference mode (see ``build_pipeline``).

    Raises WeightsMissing with ``advice``, or OutOfMemory with ``remedy``. The latter uses ``title``, if given, as name.
    """

    def plain_work() -> T:
        with torch.inference_mode(False), torch.no_grad():
            return work()

    stage = f"loading {title or what}"
    return with_misfits(what, advice, lambda: with_memory_errors(stage, remedy, plain_work))


def with_misfits(what: str, advice: str, work: Callable[[], T], *more: type[Exception]) -> T:
    """Run ``work``. Turn the exceptions of files that do not fit, and ``more``, into WeightsMissing with ``advice``."""
    try:
        return work()
    except (*MISFITS, *more) as error:
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise WeightsMissing(f"{what} cannot be loaded ({reason}); {advice}") from error
