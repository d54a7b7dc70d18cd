"""Contact sheets: nothing overlaps, everything can be read, and the images are the images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from tests.pack.conftest import REPO  # noqa: F401 - puts the pack on the path

LONG = "a very long label about a supercalifragilisticexpialidocious thing that goes on " * 12
NOISE = np.random.default_rng(0).integers(0, 256, (2100, 2100, 3), np.uint8)


def make_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(NOISE[seed * 7 :, seed:][:height, :width].copy())


SHEETS = {
    "words": (("steps 1", "steps 500"), ("red", "blue"), [(128, 128), (128, 128)]),
    "long words": ((LONG, "W" * 400), (LONG, "seed 18446744073709551615"), [(128, 128), (256, 160)]),
    "one row": (("a", LONG), (), [(64, 64), (1024, 768)]),
    "one column": ((), ("a", LONG), [(200, 130)]),
    "no labels": ((), (), [(128, 128)]),
    "many columns": (tuple(f"seed {10**19 + index}" for index in range(64)), (), [(128, 128)] * 64),
}


@pytest.mark.parametrize("title", ["", "red circle, blue background\nstarter, seed 5", LONG * 10])
@pytest.mark.parametrize("case", SHEETS)
def test_nothing_overlaps_and_every_text_is_inside_its_box(case: str, title: str) -> None:
    from neurolux.images.contact_sheet import SMALLEST_FONT, Sheet, lay_out

    columns, rows, sizes = SHEETS[case]
    cells = [[make_image(*size) for size in sizes] for _ in rows or ("",)]
    layout = lay_out(Sheet(title, columns, rows, cells))
    texts = [layout.title, *layout.columns, *layout.rows]
    for box, text in texts:
        assert text.width <= box.width
        assert text.height <= box.height
        assert text.size >= SMALLEST_FONT
        assert all(text.lines)
    boxes = [box for box, text in texts if text.lines] + [box for row in layout.cells for box in row]
    for one, other in itertools.combinations(boxes, 2):
        apart = one.left + one.width < other.left or other.left + other.width < one.left
        assert apart or one.top + one.height < other.top or other.top + other.height < one.top, (one, other)
    assert all(box.left > 0 and box.left + box.width < layout.width for box in boxes)
    assert all(box.top > 0 and box.top + box.height < layout.height for box in boxes)


def test_the_images_on_the_sheet_are_the_images() -> None:
    from neurolux.images.contact_sheet import Sheet, draw_sheet, lay_out

    sizes = [[(128, 128), (200, 96)], [(256, 300), (128, 160)]]
    cells = [
        [make_image(*size, seed=row * 2 + column) for column, size in enumerate(line)] for row, line in enumerate(sizes)
    ]
    sheet = Sheet("title", ["one", "two"], ["three", "four"], cells)
    page = draw_sheet(sheet)
    for boxes, line in zip(lay_out(sheet).cells, cells, strict=True):
        for box, cell in zip(boxes, line, strict=True):
            left, top = box.left + (box.width - cell.width) // 2, box.top + (box.height - cell.height) // 2
            assert page.crop((left, top, left + cell.width, top + cell.height)).tobytes() == cell.tobytes()


def test_labels_and_reasons_are_written() -> None:
    from neurolux.images.contact_sheet import FAILED_PAPER, Sheet, draw_sheet, lay_out

    sheet = Sheet("a title", ["one"], ["two"], [["num_inference_steps 500 is outside 1 to 50 of this model"]])
    page, layout = draw_sheet(sheet), lay_out(sheet)
    for box, _ in (layout.title, *layout.columns, *layout.rows):
        assert dark(page, box) > 20
    cell = layout.cells[0][0]
    ground = page.getpixel((cell.left + 2, cell.top + 2))
    assert ground == tuple(int(FAILED_PAPER[i : i + 2], 16) for i in (1, 3, 5))
    assert dark(page, cell) > 100
    nothing = draw_sheet(Sheet("", ["one"], ["two"], [[Image.new("RGB", (128, 128), "white")]]))
    assert np.asarray(nothing).min() < 100  # its labels


def dark(page: Image.Image, box: object) -> int:
    """How many pixels of a box are ink."""
    part = np.asarray(page)[box.top : box.top + box.height, box.left : box.left + box.width]  # pyright: ignore
    return int((part[..., 1] < 120).sum())


def test_a_large_sheet_shows_its_images_smaller() -> None:
    from neurolux.images.contact_sheet import LONGEST_SIDE, Sheet, draw_sheet, lay_out

    sheet = Sheet("", [str(number) for number in range(6)], [], [[make_image(2048, 1024)] * 6])
    layout = lay_out(sheet)
    assert LONGEST_SIDE * 0.7 < layout.width <= LONGEST_SIDE
    page, box = draw_sheet(sheet), layout.cells[0][2]
    shown = page.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    assert box.width == 2 * box.height
    expected = make_image(2048, 1024).resize((box.width, box.height), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(shown, int) - np.asarray(expected, int)).max() <= 1


def test_a_label_that_is_cut_short_says_so() -> None:
    from neurolux.images.contact_sheet import fitted

    assert fitted("red circle", 16, 400, 40).lines == ("red circle",)
    assert fitted("red circle", 16, 400, 40).size == 16
    cut = fitted(LONG, 16, 120, 60)
    assert cut.lines[-1].endswith("…")
    assert fitted("a supercalifragilisticexpialidocious", 20, 180, 80).size < 20  # smaller rather than broken


def test_rows_of_different_lengths_are_refused() -> None:
    from neurolux.images.contact_sheet import Sheet, draw_sheet

    with pytest.raises(ValueError, match="rows of equal length"):
        draw_sheet(Sheet("", [], [], [["a"], ["b", "c"]]))
    with pytest.raises(ValueError, match="a label for each column"):
        draw_sheet(Sheet("", ["one"], [], [["b", "c"]]))
