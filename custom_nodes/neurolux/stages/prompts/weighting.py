"""Weights in a prompt, as ComfyUI users write them: ``(red:1.3)``, ``(red)`` for 1.1, ``\\(`` for the character.

ComfyUI's own parser reads them, and its own rule applies them (``comfy.sd1_clip.ClipTokenWeightEncoder``): the
embedding of a token moves away from that of the empty text, or towards it. No library is used: compel has a syntax of
its own, and truncates and normalizes differently from ComfyUI.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import InvalidParameter

DEEPEST = 50
"""Parentheses inside parentheses. ComfyUI's parser calls itself for each."""
WRITTEN = re.compile(r"(?<!\\)\([^()]+:\s*[+-]?\d*\.?\d+\s*\)")
"""A weight with a number. Parentheses alone may be meant as such."""


@dataclass(frozen=True)
class WeightedText:
    """A prompt without the marks of its weights."""

    text: str
    weights: tuple[float, ...]
    """One for each character."""

    @property
    def weighted(self) -> bool:
        """Whether any weight has an effect."""
        return any(weight != 1 for weight in self.weights)


def read_weights(prompt: str) -> WeightedText:
    """The text and the weights of ``prompt``. Raises InvalidParameter for one that no encoder can apply."""
    from comfy.sd1_clip import escape_important, token_weights, unescape_important

    if "(" not in prompt and ")" not in prompt:
        return WeightedText(prompt, (1.0,) * len(prompt))
    escaped = escape_important(prompt)
    if depth(escaped) > DEEPEST:
        raise InvalidParameter(
            "prompt",
            f"the prompt has more than {DEEPEST} parentheses inside each other; write \\( for the character itself",
        )
    text, weights = "", list[float]()
    for part, weight in token_weights(escaped, 1.0):
        if not math.isfinite(weight):
            raise InvalidParameter("prompt", f"the prompt gives {part!r} the weight {weight}; use a number such as 1.3")
        part = unescape_important(part)
        text += part
        weights += [weight] * len(part)
    return WeightedText(text, tuple(weights))


def depth(text: str) -> int:
    """How many parentheses are open at most."""
    most = now = 0
    for char in text:
        now += (char == "(") - (char == ")")
        most = max(most, now)
    return most


def weighted(embeds: torch.Tensor, empty: torch.Tensor, tokenizer: Any, prompt: WeightedText) -> torch.Tensor:
    """``embeds`` (1, tokens, width) of ``prompt``, weighted; ``empty`` are those of the empty text."""
    found = tokenizer(prompt.text, truncation=True, max_length=embeds.shape[1], return_offsets_mapping=True)
    each = torch.ones(1, embeds.shape[1], 1, dtype=embeds.dtype, device=embeds.device)
    for place, (start, end) in enumerate(found.offset_mapping[: embeds.shape[1]]):
        while start < end and prompt.text[start].isspace():  # some tokenizers count the space before a word
            start += 1
        if start < end:
            each[0, place] = prompt.weights[start]
    return torch.where(each == 1, embeds, (embeds - empty) * each + empty)


def unread_weights(prompt: str) -> list[str]:
    """The weights in ``prompt``, for a model whose encoder applies none."""
    return WRITTEN.findall(prompt)
