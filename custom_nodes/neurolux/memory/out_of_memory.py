"""What happens when memory runs out: everything else leaves, a leaner way is tried, and the user gets the remedy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import comfy.model_management as mm

from ..errors import OutOfMemory
from .backends.choice import backend

T = TypeVar("T")
_log = logging.getLogger(__name__)


def with_memory_errors(
    stage: str, remedy: str, work: Callable[[], T], go_leaner: Callable[[], str | None] | None = None
) -> T:
    """Run ``work``; when memory runs out, free everything, and run it once more if ``go_leaner`` finds a way.

    ``go_leaner`` changes the plan and says how, or returns None. Raises OutOfMemory with the remedy, after the
    ``except`` block: inside it the traceback would keep the failed stage's tensors alive.
    """
    detail = attempt = None
    for attempt in (1, 2):
        try:
            return work()
        except Exception as error:
            if not backend().is_out_of_memory(error):
                raise
            detail = str(error).split("\n")[0]
        mm.unload_all_models()
        mm.soft_empty_cache()
        change = go_leaner() if go_leaner is not None and attempt == 1 else None
        if change is None:
            break
        _log.warning("NeuroLux: out of memory while %s (%s); trying again with %s", stage, detail, change)
    again = " again, with a leaner plan" if attempt == 2 else ""
    raise OutOfMemory(f"out of memory{again} while {stage}: {detail}. {remedy}")
