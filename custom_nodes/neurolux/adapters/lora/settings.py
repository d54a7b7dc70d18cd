"""What a LoRA file's settings say of its layers: peft's configuration, which no tensor holds.

diffusers writes it into the header of the file (``lora_adapter_metadata``, a name of a component before each setting);
peft itself beside the file (``adapter_model.safetensors`` and ``adapter_config.json``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InvalidParameter
from ...weights.headers import read_header
from ...weights.stamps import FileStamp
from ...weights.user_files import json_object, read_json

METADATA = "lora_adapter_metadata"
PEFT_FILE, PEFT_SETTINGS = "adapter_model", "adapter_config.json"
OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of a LoRA by which peft changes the model's own weights, so that they must be computed again."""


class SettingsMissing(ValueError):
    """A layer that means nothing without the file's settings."""

    def __init__(self, method: str) -> None:
        super().__init__(
            f"{method} without its settings; keep {PEFT_SETTINGS} beside the file, and the file's name {PEFT_FILE}"
        )


@dataclass(frozen=True)
class LayerSettings:
    """What the settings say of one layer."""

    name: str
    stated: Mapping[str, Any]

    @property
    def scale(self) -> float:
        """What the layer's product is multiplied with: alpha by rank, or by the rank's root."""
        alpha = self.number("lora_alpha" if "lora_alpha" in self.stated else "alpha", "alpha_pattern")
        rank = self.number("r", "rank_pattern")
        if rank is None or alpha is None:
            return 1.0
        if rank <= 0:
            raise ValueError(f"r is {rank:g}")
        return alpha / (math.sqrt(rank) if self.stated.get("use_rslora") else rank)

    def number(self, name: str, pattern: str) -> float | None:
        """A setting of the layer, which may have one of its own. Raises ValueError for what is no number."""
        found = self.stated.get(name)
        for own, value in (self.stated.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({own})$", self.name):
                found = value
                break
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise ValueError(f"{name} is {found!r}")
        return float(found)

    @property
    def names_feedforward(self) -> bool:
        """Whether the layer is one of a feed-forward network, as (IA)³ means it."""
        named = self.stated.get("feedforward_modules") or ()
        if isinstance(named, str):
            return re.fullmatch(named, self.name) is not None
        return any(self.name == one or self.name.endswith(f".{one}") for one in named)


@dataclass(frozen=True)
class FileSettings:
    """The settings in or beside a file, by component; an empty name for all of them."""

    by_component: Mapping[str, Mapping[str, Any]]

    def of(self, layer: str) -> LayerSettings | None:
        """Those of a layer, by its name in the file; None if there are none."""
        found = self.by_component.get(layer.partition(".")[0], self.by_component.get(""))
        return None if found is None else LayerSettings(layer, found)


def read_settings(file: FileStamp) -> FileSettings:
    """The settings of a file; empty if it has none. Raises InvalidParameter for what cannot be read or honoured."""
    try:
        noted = read_header(file.path).metadata.get(METADATA)
        if noted is not None:
            found = by_component(json_object(noted.encode()))
        else:
            beside = settings_path(file.path)
            found = {} if beside is None else {"": read_json(beside)}
        for settings in found.values():
            check(settings)
    except (ValueError, OSError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise InvalidParameter("lora", f"LoRA {file.name} cannot be loaded: of its settings, {error}") from error
    return FileSettings(found)


def settings_path(path: Path) -> Path | None:
    """Where peft's settings of the file at ``path`` are; None if there are none."""
    beside = path.with_name(PEFT_SETTINGS)
    return beside if path.stem == PEFT_FILE and beside.is_file() else None


def by_component(noted: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """diffusers' settings, apart by the component that stands before their names."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in noted.items():
        component, _, name = key.rpartition(".")
        found.setdefault(component, {})[name] = value
    return found


def check(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for settings that mean other weights of the model, and for what is no setting."""
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(OTHER_BASES):
        raise ValueError(f"{start} changed the model's own weights; convert the file to a plain LoRA with peft")
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern in settings.get(name) or {}:
            re.compile(pattern)
    if "lora_alpha" in settings or "alpha" in settings:
        _ = LayerSettings("", settings).scale
