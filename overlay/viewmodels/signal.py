"""A list of callbacks, through which a view-model reports its changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, ParamSpec

Arguments = ParamSpec("Arguments")
_log = logging.getLogger(__name__)


class Signal(Generic[Arguments]):
    """Callbacks in the order in which they were connected. A callback may disconnect itself while it runs."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[Arguments, object]] = []

    def connect(self, callback: Callable[Arguments, object]) -> Callable[[], None]:
        """Call ``callback`` at every change. Returns a function that disconnects it."""
        self._callbacks.append(callback)

        def disconnect() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return disconnect

    def emit(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        """Call every callback. A failing one is logged; the others and the sender continue."""
        for callback in list(self._callbacks):
            try:
                callback(*args, **kwargs)
            except Exception:
                _log.exception("a part of the overlay failed to follow a change")
