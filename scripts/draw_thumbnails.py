#!/usr/bin/env python3
"""Draws the template browser's thumbnails of the modes whose models the starter is not: depth, pose, edit and video.

python -m scripts.draw_thumbnails

Those of the other modes are made by scripts/generate_docs_images.py, from what the modes return.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bridge.modes.library import SHIPPED_WORKFLOWS

SIDE = 256
FINE = 4
"""Everything is drawn so many times larger, and then reduced, for smooth edges."""
SKY, SEA, GRASS, SAND = (102, 170, 255), (38, 104, 190), (120, 205, 130), (255, 214, 140)
RED, ORANGE, WHITE, INK, GREEN = (250, 50, 45), (255, 165, 40), (255, 255, 255), (45, 45, 60), (40, 170, 70)
BALLS = ((0.68, 0.30, 0.10, (140, 90, 200)), (0.30, 0.42, 0.17, ORANGE), (0.66, 0.66, 0.26, RED))
"""Centre, radius and colour of each ball, from far to near."""
JOINTS = (
    (0.50, 0.33),
    (0.34, 0.40),
    (0.22, 0.26),
    (0.66, 0.40),
    (0.80, 0.52),
    (0.50, 0.60),
    (0.38, 0.76),
    (0.30, 0.92),
)
JOINTS += ((0.62, 0.76), (0.72, 0.92), (0.50, 0.20))
BONES = ((0, 1), (1, 2), (0, 3), (3, 4), (0, 5), (5, 6), (6, 7), (5, 8), (8, 9), (0, 10))
BONE_COLOURS = ((255, 60, 0), (255, 170, 0), (170, 255, 0), (0, 255, 85), (0, 255, 255), (0, 140, 255), (0, 60, 255))


def canvas(
    colour: tuple[int, int, int], width: int = SIDE, height: int = SIDE
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty image, and what draws on it."""
    image = Image.new("RGB", (width * FINE, height * FINE), colour)
    return image, ImageDraw.Draw(image)


def reduced(image: Image.Image) -> Image.Image:
    """The image at its final size."""
    return image.resize((image.width // FINE, image.height // FINE), Image.Resampling.LANCZOS)


def ball(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    """A filled circle; lengths are shares of the side."""
    side = SIDE * FINE
    draw.ellipse(tuple(side * edge for edge in (x - radius, y - radius, x + radius, y + radius)), fill=colour)


def with_corner(image: Image.Image, small: Image.Image) -> Image.Image:
    """``image`` with ``small``, what it was made from, in its corner."""
    framed = Image.new("RGB", (SIDE // 4 + 8, SIDE // 4 + 8), INK)
    framed.paste(Image.new("RGB", (SIDE // 4 + 6, SIDE // 4 + 6), WHITE), (1, 1))
    framed.paste(small.resize((SIDE // 4, SIDE // 4), Image.Resampling.LANCZOS), (4, 4))
    image.paste(framed, (6, SIDE - framed.height - 6))
    return image


def depth() -> Image.Image:
    """Balls on a floor, and in the corner how near each of their pixels is."""
    scene, draw = canvas(SKY)
    draw.rectangle((0, SIDE * FINE * 0.38, SIDE * FINE, SIDE * FINE), fill=GRASS)
    rows = np.clip((np.linspace(0, 1, SIDE * FINE) - 0.38) / 0.62, 0, 1) * 200 + 15
    near = Image.fromarray(np.repeat(rows[:, None], SIDE * FINE, axis=1).astype(np.uint8)).convert("RGB")
    shades = ImageDraw.Draw(near)
    for x, y, radius, colour in BALLS:
        ball(draw, x, y, radius, colour)
        red, green, blue = ((each + 255) // 2 for each in colour)
        ball(draw, x - radius * 0.3, y - radius * 0.35, radius * 0.25, (red, green, blue))
        grey = min(int(40 + 200 * (y + radius)), 255)
        ball(shades, x, y, radius, (grey, grey, grey))
    return with_corner(reduced(scene), reduced(near.filter(ImageFilter.GaussianBlur(6))))


def figure(draw: ImageDraw.ImageDraw, width: float, colours: tuple[tuple[int, int, int], ...]) -> None:
    """A person with one arm up, of bones as thick as ``width``."""
    side = SIDE * FINE
    for number, (start, end) in enumerate(BONES):
        ends = [(side * JOINTS[joint][0], side * JOINTS[joint][1]) for joint in (start, end)]
        colour = colours[number % len(colours)]
        draw.line(ends, fill=colour, width=int(side * width))
        for x, y in ends:
            ball(draw, x / side, y / side, width / 2, colour)


def pose() -> Image.Image:
    """A person, and in the corner the skeleton that was followed."""
    person, draw = canvas(SAND)
    draw.rectangle((0, SIDE * FINE * 0.9, SIDE * FINE, SIDE * FINE), fill=GRASS)
    figure(draw, 0.09, (SEA,))
    ball(draw, 0.50, 0.17, 0.10, ORANGE)
    skeleton, bones = canvas((0, 0, 0))
    figure(bones, 0.035, BONE_COLOURS)
    return with_corner(reduced(person), reduced(skeleton))


def apple(colour: tuple[int, int, int]) -> Image.Image:
    """An apple with a leaf."""
    image, draw = canvas(SKY)
    side = SIDE * FINE
    ball(draw, 0.40, 0.55, 0.25, colour)
    ball(draw, 0.60, 0.55, 0.25, colour)
    ball(draw, 0.50, 0.66, 0.22, colour)
    draw.line(((side * 0.5, side * 0.36), (side * 0.55, side * 0.22)), fill=(110, 70, 40), width=side // 40)
    draw.ellipse((side * 0.30, side * 0.16, side * 0.52, side * 0.30), fill=(30, 200, 120))
    return reduced(image)


def edit() -> Image.Image:
    """The apple that an instruction made green, and in the corner the red one."""
    image = with_corner(apple(GREEN), apple(RED))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((96, 214, 248, 246), 10, fill=WHITE)
    draw.text((172, 230), "make it green", fill=INK, anchor="mm", font_size=20)
    return image


def video() -> Image.Image:
    """Frames of a boat that sails by, on a strip of film."""
    strip, frames, height = Image.new("RGB", (SIDE, SIDE), INK), 3, 72
    for number in range(frames):
        frame, draw = canvas(SKY, SIDE - 56, height)
        wide, tall = frame.size
        ball(draw, 0.14 + 0.02 * number, 0.06 + 0.012 * number, 0.035, (255, 225, 90))
        draw.rectangle((0, tall * 0.62, wide, tall), fill=SEA)
        x, y = wide * (0.22 + 0.26 * number), tall * 0.66
        draw.polygon([(x - 90, y - 20), (x + 90, y - 20), (x + 55, y + 40), (x - 55, y + 40)], fill=(150, 80, 40))
        draw.polygon([(x, y - 150), (x, y - 30), (x + 80, y - 30)], fill=WHITE)
        draw.polygon([(x - 8, y - 130), (x - 8, y - 30), (x - 62, y - 30)], fill=RED)
        strip.paste(reduced(frame), (28, 10 + number * (height + 10)))
    holes = ImageDraw.Draw(strip)
    for top in range(8, SIDE, 24):
        for left in (7, SIDE - 21):
            holes.rounded_rectangle((left, top, left + 14, top + 12), 3, fill=WHITE)
    return strip


THUMBNAILS: dict[str, Callable[[], Image.Image]] = {
    "controlnet-depth": depth,
    "controlnet-pose": pose,
    "edit": edit,
    "video": video,
}


def main() -> None:
    """Draw them all."""
    for mode, drawn in THUMBNAILS.items():
        drawn().save(SHIPPED_WORKFLOWS / f"{mode}.jpg", quality=88)


if __name__ == "__main__":
    main()
