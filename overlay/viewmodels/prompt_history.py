"""Past prompts, recalled with Up and Down as in a shell."""

from __future__ import annotations

LARGEST = 200


class PromptHistory:
    """``prompts`` is oldest first and is changed in place. The text being typed is kept while older ones are shown."""

    def __init__(self, prompts: list[str]) -> None:
        self._prompts = prompts
        self._position: int | None = None
        self._draft = ""

    def add(self, prompt: str) -> None:
        """Add ``prompt`` as the newest. A known prompt moves to the end."""
        self._position = None
        if not prompt.strip():
            return
        if prompt in self._prompts:
            self._prompts.remove(prompt)
        self._prompts.append(prompt)
        del self._prompts[:-LARGEST]

    def older(self, shown: str) -> str | None:
        """The prompt before the ``shown`` one; None at the oldest."""
        if self._position is None:
            self._draft = shown
            self._position = len(self._prompts)
        if self._position == 0:
            return None
        self._position -= 1
        if self._prompts[self._position] == shown:
            return self.older(shown)
        return self._prompts[self._position]

    def newer(self) -> str | None:
        """The next newer prompt, at the end the text being typed; None if that is already shown."""
        if self._position is None:
            return None
        self._position += 1
        if self._position < len(self._prompts):
            return self._prompts[self._position]
        self._position = None
        return self._draft
