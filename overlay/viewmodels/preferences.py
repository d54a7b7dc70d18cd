"""The preferences of the overlay: one JSON file in the XDG configuration folder."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

FILE_NAME = "overlay.json"
_log = logging.getLogger(__name__)


def default_path() -> Path:
    """``$XDG_CONFIG_HOME/neurolux-imagegen/overlay.json``."""
    return Path(platformdirs.user_config_dir("neurolux-imagegen", appauthor=False)) / FILE_NAME


@dataclass
class Preferences:
    """Saved choices. A missing or damaged file gives the defaults and is replaced at the next change."""

    path: Path = field(default_factory=default_path)
    mode: str = "text-to-image"
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The fields that the user has changed, by mode."""
    seed_locked: bool = False
    prompts: list[str] = field(default_factory=list)
    """Past prompts, oldest first."""
    save_folder: str | None = None
    dialog_size: tuple[int, int] | None = None
    hidden_jobs: list[str] = field(default_factory=list)
    """Keys of the images that the user has removed from the history."""

    @classmethod
    def load(cls, path: Path | None = None) -> Preferences:
        """Read ``path``. Values of the wrong type are left out."""
        preferences = cls(path or default_path())
        try:
            document = json.loads(preferences.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return preferences
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be read (%s); starting with defaults", preferences.path, error)
            return preferences
        for item in fields(cls):
            default = getattr(preferences, item.name)
            value = document.get(item.name) if isinstance(document, dict) else None
            if item.name == "path" or value is None:
                continue
            if item.name == "dialog_size":
                if isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) for side in value):
                    preferences.dialog_size = (value[0], value[1])
            elif default is None or isinstance(value, type(default)):
                setattr(preferences, item.name, value)
        return preferences

    def save(self) -> None:
        """Write the file completely or not at all. A failure is logged and not raised: nothing depends on the file."""
        document = {name: value for name, value in asdict(self).items() if name != "path"}
        partial = self.path.with_suffix(".partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(partial, self.path)
        except OSError as error:
            _log.warning("preferences cannot be written to %s: %s", self.path, error)
