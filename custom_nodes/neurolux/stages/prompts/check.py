"""The parts of a prompt that a model cannot use, reported before the image is made without them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...catalog.models import FolderSource
from ...families.registry import family_of
from ...loading.loaded import LoadedPipeline
from ...weights.user_files import read_json
from .weighting import unread_weights

VOCABULARY_FILE = "vocabulary.json"
"""In a model's folder: its text encoders were shown a few hundred words, and nothing else. ``rough_words`` in it
names those that it shows badly."""
WORD = re.compile(r"[^\W_]+")
LORA, EMBEDDING = re.compile(r"<lora:[^<>]+>"), re.compile(r"\bembedding:[^\s,()]+")
SHOWN = 8


def prompt_warnings(loaded: LoadedPipeline, text: str) -> list[str]:
    """One sentence for each thing that has no effect; an empty list for a prompt that is used whole."""
    return [*vocabulary_warnings(loaded, text), *truncation_warnings(loaded, text), *syntax_warnings(text)]


def syntax_warnings(text: str) -> list[str]:
    """Names what other programs read as a command and no text encoder here does."""
    return [
        *(f"{found!r} is read as text; to apply a LoRA, use Apply LoRA" for found in LORA.findall(text)),
        *(f"{found!r} is read as text: embeddings in a prompt are not supported" for found in EMBEDDING.findall(text)),
    ]


def weight_warnings(loaded: LoadedPipeline, text: str) -> list[str]:
    """Names the weights in a prompt, for a model whose encoder applies none."""
    found = unread_weights(text)
    if not found:
        return []
    return [f"{loaded.model.name} knows no weights in a prompt: {listed(found)} is read as text"]


def vocabulary_warnings(loaded: LoadedPipeline, text: str) -> list[str]:
    """Names the words that a model with a closed vocabulary does not know, and those that it hardly learned.

    Unknown are those that its tokenizer cannot name. Other models' tokenizers cut an unknown word into known pieces,
    so for them it means nothing.
    """
    source = loaded.model.source
    if not isinstance(source, FolderSource) or not (source.path / VOCABULARY_FILE).is_file():
        return []
    tokenizer = main_tokenizer(loaded)
    encoded = tokenizer(text, truncation=False, verbose=False, return_offsets_mapping=True)
    places = zip(encoded.input_ids, encoded.offset_mapping, strict=True)
    unknown = [text[start:end] for token, (start, end) in places if token == tokenizer.unk_token_id]
    rough = rough_words(source.path / VOCABULARY_FILE)
    roughly = [word for word in WORD.findall(text) if word.lower() in rough]
    name = loaded.model.name
    return [
        *([f"{name} does not know {listed(unknown)}: the image may not show it"] if unknown else []),
        *([f"{name} shows {listed(roughly)} only roughly"] if roughly else []),
    ]


def main_tokenizer(loaded: LoadedPipeline) -> Any:
    """That of the encoder which reads most: the second, where there are two."""
    pipe: Any = loaded.pipe
    return getattr(pipe, "tokenizer_2", None) or pipe.tokenizer


@lru_cache(maxsize=8)
def rough_words(path: Path) -> frozenset[str]:
    """The words that a model says it learned only roughly; none if the file is damaged."""
    try:
        return frozenset(str(word) for word in read_json(path).get("rough_words", []))
    except (OSError, ValueError, TypeError):
        return frozenset()


def listed(words: Iterable[str]) -> str:
    """Words for a sentence, each once."""
    distinct = list(dict.fromkeys(words))
    more = f" and {len(distinct) - SHOWN} more" if len(distinct) > SHOWN else ""
    return ", ".join(repr(word) for word in distinct[:SHOWN]) + more


def truncation_warnings(loaded: LoadedPipeline, text: str) -> list[str]:
    """Says so when the prompt is longer than what the main text encoder reads."""
    tokenizer = main_tokenizer(loaded)
    limit = min(loaded.model.max_sequence_length, tokenizer.model_max_length)
    if template := family_of(loaded.model.family).encoding.template(tokenizer):
        limit -= len(tokenizer(template).input_ids)
    tokens = len(tokenizer(text, truncation=False, verbose=False).input_ids)
    if tokens <= limit:
        return []
    return [f"the prompt has {tokens} tokens and {loaded.model.name} reads {limit}: its end has no effect"]
