"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.terminal import safe_line, show


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows in aligned columns; the first row is the head."""
    safe = [tuple(safe_line(cell) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in safe) for column in range(len(safe[0]))]
    for row in safe:
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
