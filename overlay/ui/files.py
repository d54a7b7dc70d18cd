"""The folder of the layout files."""

from __future__ import annotations

from pathlib import Path

UI_FOLDER = Path(__file__).parent
