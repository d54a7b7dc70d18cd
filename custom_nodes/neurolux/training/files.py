"""The files that a training writes: the LoRA, under a name of its own, and the checkpoint that it can go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InvalidParameter
from .settings import differences

RECORD = "neurolux_training"
"""Key in the header of a checkpoint, of a JSON text."""
FORMAT = {"format": "pt"}
ADDED_TO_NAME = ".-99999_00001_.safetensors.partial"
"""The most that is added to the name of a LoRA, here and by File Result."""


@dataclass(frozen=True)
class Checkpoint:
    """A training as it is between two steps."""

    step: int
    """Steps that are done."""
    weights: dict[str, torch.Tensor]
    """The LoRA's, float32 on the CPU, by the names that the denoiser has for them."""
    optimizer: dict[str, torch.Tensor]
    """AdamW's state: ``NAME/WEIGHT``."""
    losses: list[float]
    """Of every step."""
    scaler: Mapping[str, Any]
    """Of the loss scale that fp16 needs; empty where there is none."""


def save_sorted(tensors: dict[str, torch.Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """safetensors' ``save_file``, the same bytes every time: it writes the metadata in a random order."""
    save_file(tensors, path, metadata=metadata)
    with Path(path).open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))


def write_whole(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file that is either there whole or not at all, and replaces the one of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_sorted(tensors, partial, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_checkpoint(path: Path, checkpoint: Checkpoint, begun_with: Mapping[str, Any]) -> None:
    """Write a checkpoint; ``begun_with`` is what a training that goes on must have in common with it."""
    record = {
        "step": checkpoint.step,
        "losses": checkpoint.losses,
        "scaler": dict(checkpoint.scaler),
        "begun_with": dict(begun_with),
    }
    tensors = {f"weights/{name}": weight for name, weight in checkpoint.weights.items()}
    tensors |= {f"optimizer/{name}": value for name, value in checkpoint.optimizer.items()}
    write_whole(path, tensors, {**FORMAT, RECORD: json.dumps(record)})


def load_checkpoint(path: Path, begun_with: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint in ``path``, or None where there is none.

    Raises InvalidParameter where it is damaged or of a training with other images or settings.
    """
    if not path.is_file():
        return None
    off = "turn resume off to start over, or choose another name"
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {})[RECORD])
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InvalidParameter("resume", f"the checkpoint {path.name} is damaged ({error}); {off}") from error
    found = list(differences(record["begun_with"], begun_with))
    if found:
        raise InvalidParameter(
            "resume",
            f"the training {path.stem} started with other values: {'; '.join(found)}. Set them back, or {off}",
        )
    groups: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    return Checkpoint(record["step"], **groups, losses=record["losses"], scaler=record["scaler"])


def check_writable(folder: Path, name: str) -> None:
    """Raise InvalidParameter now rather than after hours where NAME.safetensors cannot be written into ``folder``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidParameter("name", f"the folder {folder} cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise InvalidParameter("name", f"the folder {folder} cannot be written to; change its permissions")
    most = longest_name(folder) - len(ADDED_TO_NAME)
    length = len(os.fsencode(name))
    if length > most:
        raise InvalidParameter(
            "name", f"name {name!r} has {length} bytes as a file name; at most {most} fit here. Use a shorter one"
        )


def longest_name(folder: Path) -> int:
    """How many bytes a file name in ``folder`` may have: less than usual where names are encrypted."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):  # AttributeError: Windows
        return 255


def save_lora(
    pipe: Any,
    denoiser: str,
    folder: Path,
    name: str,
    layers: dict[str, torch.Tensor],
    file_tensors: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    metadata: dict[str, str],
) -> Path:
    """Write ``layers`` as NAME.safetensors, or NAME-2 and so on where that is taken.

    ``file_tensors``: from diffusers' names for the tensors to those of the file.
    """
    partial = f".{name}.safetensors.partial"

    def write(state: dict[str, torch.Tensor], path: str) -> None:
        tensors = {key: value.contiguous() for key, value in file_tensors(state).items()}
        save_sorted(tensors, path, {**FORMAT, **metadata})

    try:
        pipe.save_lora_weights(
            folder,
            **{f"{denoiser}_lora_layers": layers},
            weight_name=partial,
            save_function=write,
            safe_serialization=True,
        )
        for number in range(1, 100_000):
            path = folder / (f"{name}.safetensors" if number == 1 else f"{name}-{number}.safetensors")
            with suppress(FileExistsError):
                claim(folder / partial, path)
                return path
        raise InvalidParameter("name", f"every number behind {name} is taken in {folder}; choose another name")
    finally:
        (folder / partial).unlink(missing_ok=True)


def claim(written: Path, path: Path) -> None:
    """Give a written file its name. Raises FileExistsError where that is taken, also by another process just now."""
    try:
        os.link(written, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        path.touch(exist_ok=False)
        os.replace(written, path)
