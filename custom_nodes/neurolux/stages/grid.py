"""One prompt over a matrix of two settings: which images that is, and the sheet that shows them side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from ..catalog.models import Model
from ..errors import InvalidParameter
from ..images.contact_sheet import Cell, Sheet, draw_sheet
from .many import Failed, Gallery, Generated, Shot
from .many_values import SETTINGS, Axis, Value, check_count, replaced


@dataclass(frozen=True)
class Grid:
    """The two sides; ``columns`` run to the right, ``rows`` downwards. None: that side has one place."""

    columns: Axis | None
    rows: Axis | None

    @property
    def column_labels(self) -> list[str]:
        """Above the sheet's columns; none where there is one column only."""
        return labels(self.columns)

    @property
    def row_labels(self) -> list[str]:
        """Beside the sheet's rows; none where there is one row only."""
        return labels(self.rows)


def labels(axis: Axis | None) -> list[str]:
    return [axis.label(value) for value in axis.values] if axis else []


def make_grid(columns: Axis | None, rows: Axis | None) -> Grid:
    """Check the two sides together. Raises InvalidParameter."""
    if columns is None and rows is None:
        raise InvalidParameter("x_setting", f"the grid has no side; set x_setting to one of {', '.join(SETTINGS)}")
    if columns is not None and rows is not None:
        if columns.setting == rows.setting != "prompt":
            raise InvalidParameter("y_setting", f"both sides vary {columns.setting}; choose another y_setting")
        if columns.setting == rows.setting and columns.values[0].used == rows.values[0].used:
            raise InvalidParameter(
                "y_values", f"both sides replace {columns.values[0].shown!r}; begin one with another part of the prompt"
            )
        check_count("y_values", len(columns.values) * len(rows.values))
    return Grid(columns, rows)


def shots_of(grid: Grid, base: Shot, model: Model) -> list[Shot]:
    """The images, row by row; ``base`` has what no side varies, ``model`` is the pipeline's."""
    return [shot_at(grid, base, model, row, column) for row in places(grid.rows) for column in places(grid.columns)]


def places(axis: Axis | None) -> Iterator[Value | None]:
    yield from axis.values if axis else (None,)


def shot_at(grid: Grid, base: Shot, model: Model, row: Value | None, column: Value | None) -> Shot:
    """The image of one row and one column."""
    sides = [(axis, value) for axis, value in ((grid.columns, column), (grid.rows, row)) if axis and value]
    changes: list[tuple[str, str]] = []
    said: list[str] = []
    shot = base
    if any(axis.setting == "model" and value.used != model.name for axis, value in sides):
        shot = for_another_model(base, model)
    for axis, value in sides:
        said.append(axis.label(value))
        if axis.setting == "prompt":
            changes.append((str(axis.values[0].used), str(value.used)))
        else:
            shot = with_setting(shot, axis.setting, value)
    return replace(shot, prompt=replaced(shot.prompt, changes), label=", ".join(said))


def for_another_model(shot: Shot, model: Model) -> Shot:
    """``shot`` with the other model's own defaults wherever it has those of ``model``.

    A service fills in the defaults of the model that a request names, so they say nothing about the others.
    """
    defaults = model.defaults
    usual_size = (shot.width or defaults.width, shot.height or defaults.height) == (defaults.width, defaults.height)
    return replace(
        shot,
        steps=0 if shot.steps == defaults.num_inference_steps else shot.steps,
        guidance=-1.0 if shot.guidance == defaults.guidance_scale else shot.guidance,
        width=0 if usual_size else shot.width,
        height=0 if usual_size else shot.height,
    )


def with_setting(shot: Shot, setting: str, value: Value) -> Shot:
    """``shot`` with one value set. Steps of 0 are refused here: further on they would mean the model's default."""
    match setting, value.used:
        case "size", (int() as width, int() as height):
            if not width or not height:
                raise InvalidParameter("size", f"size {value.shown} has no pixels; write for example 1024 or 1024x768")
            return replace(shot, width=width, height=height)
        case "num_inference_steps", 0:
            raise InvalidParameter("num_inference_steps", "num_inference_steps 0 is too few; 1 is the least")
        case "guidance_scale", float() as guidance if guidance < 0:
            raise InvalidParameter("guidance_scale", f"guidance_scale {guidance:g} is below 0")
        case _, used:
            return replace(shot, **{FIELDS[setting]: used})


FIELDS = {
    "seed": "seed",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "lora_strength": "lora_strength",
    "model": "model",
}
"""The field of a Shot, by the setting."""


def sheet_of(grid: Grid, gallery: Gallery, title: str) -> Image.Image:
    """The contact sheet: all images at their places; the reason where one is missing."""
    cells: list[Cell] = [cell_of(outcome) for outcome in gallery.outcomes]
    width = len(list(places(grid.columns)))
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    return draw_sheet(Sheet(title, grid.column_labels, grid.row_labels, rows))


def cell_of(outcome: Generated | Failed) -> Cell:
    return outcome.reason if isinstance(outcome, Failed) else to_image(outcome.image)


def to_image(images: torch.Tensor) -> Image.Image:
    """The first of ``images`` (B, H, W, 3), rounded as the Result node does."""
    return Image.fromarray((images[0].clamp(0, 1).numpy() * 255).round().astype(np.uint8))


def to_images(image: Image.Image) -> torch.Tensor:
    """An image as an IMAGE of one, (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)[None]


def title_of(grid: Grid, base: Shot, model: str) -> str:
    """The prompt, and what no side varies."""
    varied = {axis.setting for axis in (grid.columns, grid.rows) if axis}
    fixed: list[str] = []
    if "model" not in varied:
        fixed.append(model)
    if "seed" not in varied:
        fixed.append(f"seed {base.seed}")
    if not varied & {"num_inference_steps", "model"} and base.steps:
        fixed.append(f"{base.steps} steps")
    if not varied & {"guidance_scale", "model"} and base.guidance >= 0:
        fixed.append(f"guidance {base.guidance:g}")
    return "\n".join(filter(None, [base.prompt, ", ".join(fixed)]))
