"""Records how the global shortcut was bound, so that it can be undone.

It has its own file: `imagegen overlay --install` writes it, and the running overlay, which is another process, keeps
its preferences in memory and would overwrite it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from overlay.desktop.shortcuts.binding import Binding
from overlay.viewmodels.preferences import default_path

FILE_NAME = "shortcut.json"


def record_path() -> Path:
    """``$XDG_CONFIG_HOME/neurolux-imagegen/shortcut.json``."""
    return default_path().with_name(FILE_NAME)


def read_record() -> Binding | None:
    """The recorded binding; None if there is none or the file is damaged."""
    try:
        return Binding(**json.loads(record_path().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_record(binding: Binding | None) -> None:
    """Record ``binding``; None removes the record. Raises OSError."""
    path = record_path()
    if binding is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(binding), indent=1) + "\n", encoding="utf-8")
