#!/usr/bin/env python3
"""Draws the icon and the banner that the ComfyUI registry shows of the pack, into docs/images.

python -m scripts.draw_registry_images

The icon is the overlay's. The banner shows images of the starter model, as they are in its model card.
"""

from __future__ import annotations

import io
from pathlib import Path

import cairosvg
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
ICON = ROOT / "docs" / "images" / "registry-icon.png"
BANNER = ROOT / "docs" / "images" / "registry-banner.jpg"
SYMBOL = ROOT / "overlay" / "data" / "icons" / "hicolor" / "scalable" / "apps" / "org.neurolux.Overlay.svg"
EXAMPLES = ROOT / "custom_nodes" / "neurolux" / "models" / "starter" / "unseen.png"
ICON_SIDE = 400
"""The largest that the registry takes."""
BANNER_SIZE = (1260, 540)
"""21:9, as the registry asks for."""
DARK, LIGHT, MUTED = "#1b2436", "#f2efe9", "#9fb0cc"
SIDE, COLUMNS, ROWS, FIRST, STEP = 128, 5, 4, 8, (136, 166)
"""Where the images are in the file of examples."""


def symbol(side: int) -> Image.Image:
    """The overlay's icon with a width and height of ``side`` pixels."""
    png = cairosvg.svg2png(url=str(SYMBOL), output_width=side, output_height=side)
    assert isinstance(png, bytes)
    return Image.open(io.BytesIO(png)).convert("RGBA")


def banner() -> Image.Image:
    """The name at the left, examples at the right."""
    sheet = Image.new("RGB", BANNER_SIZE, DARK)
    with Image.open(EXAMPLES) as examples:
        for row in range(ROWS):
            for column in range(COLUMNS):
                left, top = FIRST + column * STEP[0], FIRST + row * STEP[1]
                tile = examples.crop((left, top, left + SIDE, top + SIDE))
                sheet.paste(tile, (BANNER_SIZE[0] - (COLUMNS - column) * 134 - 8, 6 + row * 133))
    draw = ImageDraw.Draw(sheet)
    mark = symbol(170)
    sheet.paste(mark, (60, 80), mark)
    draw.text((60, 275), "NeuroLux", font=ImageFont.load_default(76), fill=LIGHT)
    draw.text((62, 365), "Image Generation", font=ImageFont.load_default(42), fill=LIGHT)
    draw.text((62, 430), "diffusers in ComfyUI, graphs as endpoints", font=ImageFont.load_default(22), fill=MUTED)
    return sheet


if __name__ == "__main__":
    symbol(ICON_SIDE).save(ICON, optimize=True)
    banner().save(BANNER, quality=88)
