"""A contact sheet: labelled images in rows and columns. Pure: images and texts in, one image out.

The font is Pillow's own (Aileron), which every Pillow includes. Each text stays within its box: it is wrapped, then
made smaller, then truncated with an ellipsis.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

LONGEST_SIDE = 8192
"""Approximate limit of a sheet's sides in pixels. Larger images are scaled down on the sheet only."""
SMALLEST_CELL = 128
"""Smallest cell in pixels. A label in a smaller one could not hold a word."""
SMALLEST_FONT, LARGEST_FONT = 11, 64
FONT_SHARE = 1 / 11
"""Font size as a share of a cell's shorter side."""
TITLE_LINES, COLUMN_LINES = 4, 4
ROW_LABEL_SHARE = 0.9
"""Maximum width of the row labels, as a share of a cell's width."""
LINE_SPACING = 1.2
PAPER, INK = "#ffffff", "#1b1b1b"
FAILED_PAPER, FAILED_INK = "#fbe9e7", "#9a1f10"
ELLIPSIS = "…"

Cell = Image.Image | str
"""An image, or the reason why there is none."""


@dataclass(frozen=True)
class Sheet:
    """The content of a sheet. All ``rows`` have the same length. A list of labels is empty if there are none."""

    title: str
    column_labels: Sequence[str]
    row_labels: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Box:
    """A rectangle on the sheet, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Text:
    """A text that fits its box: its lines and its font size."""

    lines: tuple[str, ...]
    size: int

    @property
    def line_height(self) -> int:
        return round(self.size * LINE_SPACING)

    @property
    def height(self) -> int:
        return self.line_height * len(self.lines)

    @property
    def width(self) -> int:
        return max((text_width(line, self.size) for line in self.lines), default=0)


@dataclass(frozen=True)
class Layout:
    """The positions of everything on a sheet. The labels fit their boxes."""

    width: int
    height: int
    title: tuple[Box, Text]
    columns: tuple[tuple[Box, Text], ...]
    rows: tuple[tuple[Box, Text], ...]
    cells: tuple[tuple[Box, ...], ...]


@lru_cache(maxsize=64)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own scalable font."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType and has no scalable font; install its wheel")
    return font


@lru_cache(maxsize=4096)
def text_width(text: str, size: int) -> int:
    """The width of ``text`` at font size ``size``, in pixels."""
    return round(font_of(size).getlength(text) + 0.5)


@dataclass(frozen=True)
class Wrapped:
    """Wrapped lines. ``broken``: a word was longer than a line and was split."""

    lines: list[str]
    broken: bool


def wrapped(text: str, size: int, width: int, enough: int) -> Wrapped:
    """``text`` in lines of at most ``width`` pixels. Stops after ``enough`` lines."""
    lines: list[str] = []
    broken = False
    space = text_width(" ", size)
    for paragraph in text.splitlines():
        line, used = "", 0
        for word in paragraph.split():
            if len(lines) >= enough:
                return Wrapped(lines, broken)
            # Measure word by word: measuring the whole line each time takes quadratic time.
            more = text_width(word, size)
            if line and used + space + more <= width:
                line, used = f"{line} {word}", used + space + more
                continue
            if line:
                lines.append(line)
            while more > width and len(word) > 1 and len(lines) < enough:
                broken = True
                parts = range(1, len(word))
                fits = bisect_right(parts, width, key=lambda n, word=word: text_width(word[:n], size))
                lines.append(word[: max(1, fits)])
                word = word[max(1, fits) :]
                more = text_width(word, size)
            line, used = word, more
        if line:
            lines.append(line)
    return Wrapped(lines, broken)


def fitted(text: str, size: int, width: int, height: int, most_lines: int | None = None) -> Text:
    """``text`` within ``width`` x ``height`` pixels: at ``size``, or smaller, or truncated at the smallest size."""
    while True:
        rows = max(1, height // round(size * LINE_SPACING))
        rows = min(rows, most_lines or rows)
        found = wrapped(text, size, width, rows + 1)
        # prefer a smaller font to a split word
        if (len(found.lines) <= rows and not found.broken) or size <= SMALLEST_FONT:
            return Text(tuple(cut(found.lines, rows, size, width)), size)
        size = max(SMALLEST_FONT, min(size - 1, round(size * 0.9)))


def cut(lines: Sequence[str], rows: int, size: int, width: int) -> list[str]:
    """The first ``rows`` of ``lines``, with an ellipsis at the end if there are more."""
    if len(lines) <= rows:
        return list(lines)
    last = lines[rows - 1]
    while last and text_width(last + ELLIPSIS, size) > width:
        last = last[:-1]
    return [*lines[: rows - 1], last.rstrip() + ELLIPSIS]


def cell_sizes(sheet: Sheet) -> tuple[list[int], list[int]]:
    """The widths of the columns and the heights of the rows. They fit the largest images, or less on a huge sheet."""
    columns = list(zip(*sheet.rows, strict=True))
    widths = [max([SMALLEST_CELL, *(image.width for image in images(column))]) for column in columns]
    heights = [max([SMALLEST_CELL, *(image.height for image in images(row))]) for row in sheet.rows]
    # one more column and row for labels and title
    scale = min(1.0, LONGEST_SIDE / (sum(widths) + max(widths)), LONGEST_SIDE / (sum(heights) + max(heights)))
    return [max(SMALLEST_CELL, int(n * scale)) for n in widths], [max(SMALLEST_CELL, int(n * scale)) for n in heights]


def images(cells: Sequence[Cell]) -> list[Image.Image]:
    """The images among ``cells``."""
    return [cell for cell in cells if isinstance(cell, Image.Image)]


def starts(sizes: Sequence[int], first: int, gap: int) -> list[int]:
    """The start positions of parts with these sizes, in a line with gaps."""
    return [first + sum(sizes[:index]) + index * gap for index in range(len(sizes))]


def lay_out(sheet: Sheet) -> Layout:
    """Calculate the layout of a sheet. Raises ValueError for rows or labels whose lengths do not match."""
    if not sheet.rows or not sheet.rows[0] or len({len(row) for row in sheet.rows}) > 1:
        raise ValueError("a sheet needs rows of equal length")
    if sheet.column_labels and len(sheet.column_labels) != len(sheet.rows[0]):
        raise ValueError("a sheet needs a label for each column, or none")
    if sheet.row_labels and len(sheet.row_labels) != len(sheet.rows):
        raise ValueError("a sheet needs a label for each row, or none")
    widths, heights = cell_sizes(sheet)
    size = round(max(SMALLEST_FONT + 2, min(LARGEST_FONT, FONT_SHARE * min(max(widths), max(heights)))))
    line, gap = round(size * LINE_SPACING), max(6, size // 2)

    label_width = int(max(widths) * ROW_LABEL_SHARE)
    rows = [fitted(text, size, label_width, height) for text, height in zip(sheet.row_labels, heights, strict=False)]
    left = max((label.width for label in rows), default=0) + (2 if rows else 1) * gap
    total = left + sum(widths) + gap * len(widths)

    title = fitted(sheet.title, round(size * 1.15), total - 2 * gap, TITLE_LINES * round(line * 1.15), TITLE_LINES)
    columns = [
        fitted(text, size, width, COLUMN_LINES * line, COLUMN_LINES)
        for text, width in zip(sheet.column_labels, widths, strict=False)
    ]
    labels_top = gap + (title.height + gap if title.lines else 0)
    labels_height = max((label.height for label in columns), default=0)
    top = labels_top + (labels_height + gap if columns else 0)

    across = list(zip(starts(widths, left, gap), widths, strict=True))
    down = list(zip(starts(heights, top, gap), heights, strict=True))
    return Layout(
        total,
        top + sum(heights) + gap * len(heights),
        (Box(gap, gap, total - 2 * gap, title.height), title),
        tuple((Box(x, labels_top, w, labels_height), label) for (x, w), label in zip(across, columns, strict=False)),
        tuple((Box(gap, y, left - 2 * gap, h), label) for (y, h), label in zip(down, rows, strict=False)),
        tuple(tuple(Box(x, y, w, h) for x, w in across) for y, h in down),
    )


def draw_sheet(sheet: Sheet) -> Image.Image:
    """The sheet as an RGB image. Raises ValueError for rows or labels whose lengths do not match."""
    layout = lay_out(sheet)
    page = Image.new("RGB", (layout.width, layout.height), PAPER)
    draw = ImageDraw.Draw(page)
    box, title = layout.title
    write(draw, box, title, INK, align="left")
    for box, label in layout.columns:
        write(draw, Box(box.left, box.top + box.height - label.height, box.width, label.height), label, INK)
    for box, label in layout.rows:
        write(draw, box, label, INK, align="right")
    for boxes, cells in zip(layout.cells, sheet.rows, strict=True):
        for box, cell in zip(boxes, cells, strict=True):
            draw_cell(page, draw, box, cell)
    return page


def draw_cell(page: Image.Image, draw: ImageDraw.ImageDraw, box: Box, cell: Cell) -> None:
    """Draw a cell: an image in the middle of its box, scaled down if necessary, or the reason on a red background."""
    if isinstance(cell, str):
        right, bottom = box.left + box.width - 1, box.top + box.height - 1
        draw.rectangle((box.left, box.top, right, bottom), FAILED_PAPER, FAILED_INK)
        margin = max(4, box.width // 24)
        inner = Box(box.left + margin, box.top + margin, box.width - 2 * margin, box.height - 2 * margin)
        size = round(max(SMALLEST_FONT, min(LARGEST_FONT, FONT_SHARE * min(box.width, box.height))))
        write(draw, inner, fitted(cell, size, inner.width, inner.height), FAILED_INK)
        return
    image = cell.convert("RGB")
    scale = min(box.width / image.width, box.height / image.height)
    if scale < 1:
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    page.paste(image, (box.left + (box.width - image.width) // 2, box.top + (box.height - image.height) // 2))


def write(draw: ImageDraw.ImageDraw, box: Box, text: Text, colour: str, align: str = "centre") -> None:
    """Write ``text`` into ``box``, vertically centred."""
    top = box.top + (box.height - text.height) // 2
    for number, line in enumerate(text.lines):
        space = box.width - text_width(line, text.size)
        left = box.left + {"left": 0, "centre": space // 2, "right": space}[align]
        draw.text((left, top + number * text.line_height), line, fill=colour, font=font_of(text.size))
