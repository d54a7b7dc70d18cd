"""A list of callbacks: how a view-model tells whoever shows it that it has changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, ParamSpec

Arguments = ParamSpec("Arguments")
_log = logging.getLogger(__name__)


class Signal(Generic[Arguments]):
    """Callbacks in the order of their connection. One that disconnects itself while it is called is fine."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[Arguments, object]] = []

    def connect(self, callback: Callable[Arguments, object]) -> Callable[[], None]:
        """Call ``callback`` from now on; returns what ends it."""
        self._callbacks.append(callback)

        def disconnect() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return disconnect

    def emit(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        """Call every callback. One that fails is logged and keeps neither the others nor the sender from going on."""
        for callback in list(self._callbacks):
            try:
                callback(*args, **kwargs)
            except Exception:
                _log.exception("a part of the overlay could not follow a change")
