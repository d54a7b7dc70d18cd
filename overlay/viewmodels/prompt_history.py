"""Past prompts, walked through with Up and Down as in a shell."""

from __future__ import annotations

LARGEST = 200


class PromptHistory:
    """``prompts`` is oldest first and is changed in place. What is being typed is kept while one looks back."""

    def __init__(self, prompts: list[str]) -> None:
        self._prompts = prompts
        self._position: int | None = None
        self._draft = ""

    def add(self, prompt: str) -> None:
        """Remember ``prompt`` as the newest; one that was there before moves up."""
        self._position = None
        if not prompt.strip():
            return
        if prompt in self._prompts:
            self._prompts.remove(prompt)
        self._prompts.append(prompt)
        del self._prompts[:-LARGEST]

    def older(self, shown: str) -> str | None:
        """The prompt before the one ``shown``; None at the oldest."""
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
        """The prompt after the one shown, at last what was being typed; None when that is shown already."""
        if self._position is None:
            return None
        self._position += 1
        if self._position < len(self._prompts):
            return self._prompts[self._position]
        self._position = None
        return self._draft
