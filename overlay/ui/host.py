"""What the windows ask of the application that shows them. They import this and never the application itself."""

from __future__ import annotations

from typing import Protocol


class WindowHost(Protocol):
    """The application, as a window sees it."""

    def show_generate(self, prompt: str | None = None, *, start: bool = False) -> None:
        """Show the generate window with ``prompt`` in it; ``start`` generates as soon as the service is ready."""
        ...

    def notify_hidden(self, text: str) -> None:
        """Say ``text`` through the desktop while no window is visible."""
        ...
