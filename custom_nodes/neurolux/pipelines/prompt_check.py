"""What of a prompt a model cannot make use of, said before it is drawn without it."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..catalog import FolderSource
from .registry import LoadedPipeline

VOCABULARY_FILE = "vocabulary.json"
"""``{"words": [...]}`` in a model's folder: all that its text encoders were ever shown."""
WORD = re.compile(r"[^\W_]+")
SHOWN = 8


def prompt_warnings(loaded: LoadedPipeline, text: str) -> list[str]:
    """One sentence for each thing that has no effect; an empty list for a prompt that is used whole."""
    return [*unknown_word_warnings(loaded, text), *truncation_warnings(loaded, text)]


def unknown_word_warnings(loaded: LoadedPipeline, text: str) -> list[str]:
    """Names the words that a model with a closed vocabulary does not know."""
    source = loaded.model.source
    if not isinstance(source, FolderSource) or not (source.path / VOCABULARY_FILE).is_file():
        return []
    known = vocabulary(source.path / VOCABULARY_FILE)
    unknown = list(dict.fromkeys(word for word in WORD.findall(text.lower()) if word not in known))
    if not unknown:
        return []
    more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    words = ", ".join(repr(word) for word in unknown[:SHOWN])
    return [f"{loaded.model.name} does not know {words}{more}: the picture may not show it"]


@lru_cache(maxsize=8)
def vocabulary(path: Path) -> frozenset[str]:
    """The words in a vocabulary file."""
    return frozenset(json.loads(path.read_text(encoding="utf-8"))["words"])


def truncation_warnings(loaded: LoadedPipeline, text: str) -> list[str]:
    """Says so when the prompt is longer than what the main text encoder reads."""
    pipe: Any = loaded.pipe
    tokenizer = pipe.tokenizer_2
    limit = min(loaded.model.max_sequence_length, tokenizer.model_max_length)
    tokens = len(tokenizer(text, truncation=False, verbose=False).input_ids)
    if tokens <= limit:
        return []
    return [f"the prompt has {tokens} tokens and {loaded.model.name} reads {limit}: its end has no effect"]
