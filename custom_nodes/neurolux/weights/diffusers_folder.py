"""Checks that a diffusers folder is complete. Reads its index files only, and opens no weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .user_files import read_json

WEIGHTS = (".safetensors", ".bin")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")


def missing_files(folder: Path, *, without_weights: frozenset[str] = frozenset()) -> list[str]:
    """The files that the pipeline in ``folder`` lacks; empty if it is complete.

    ``without_weights`` names components whose weights come from elsewhere (their config must still be here). An index
    that cannot be read counts as missing.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        return ["model_index.json"]
    try:
        entries = read_json(index)
    except (OSError, ValueError):
        return ["model_index.json"]
    components = [
        name for name, value in entries.items() if isinstance(value, list) and value and isinstance(value[0], str)
    ]
    return [
        missing
        for name in components
        for missing in missing_in_component(folder / name, name, weights=name not in without_weights)
    ]


def missing_in_component(folder: Path, name: str, *, weights: bool) -> Iterator[str]:
    """The files that one component's folder lacks."""
    if name == "scheduler":
        required = ["scheduler_config.json"]
    elif name.startswith("tokenizer"):
        required = ["tokenizer_config.json"]
        if not any((folder / file).is_file() for file in TOKENIZER_FILES):
            yield f"{name}/{TOKENIZER_FILES[0]}"
    elif name == "feature_extractor":
        required = ["preprocessor_config.json"]
    else:
        required = ["config.json"]
        if weights:
            yield from (f"{name}/{file}" for file in missing_weights(folder))
    yield from (f"{name}/{file}" for file in required if not (folder / file).is_file())


def missing_weights(folder: Path) -> list[str]:
    """The shards that an index names but the folder lacks. Without an index, one weight file is enough.

    ``is_file`` follows the links of the Hugging Face cache, which only appear once a download is complete.
    """
    indexes = list(folder.glob("*.index.json"))
    if indexes:
        try:
            shards = {str(shard) for index in indexes for shard in read_json(index)["weight_map"].values()}
        except (OSError, ValueError, KeyError, AttributeError):
            return [index.name for index in indexes]
        return sorted(shard for shard in shards if not (folder / shard).is_file())
    if any(path.suffix in WEIGHTS and path.is_file() for path in folder.glob("*")):
        return []
    return ["*.safetensors"]


def weight_bytes(folder: Path) -> int:
    """Bytes of all weight files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in WEIGHTS and path.is_file())
