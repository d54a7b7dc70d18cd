"""Where the layout files are."""

from __future__ import annotations

from pathlib import Path

UI_FOLDER = Path(__file__).parent
