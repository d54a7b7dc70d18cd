"""The loss of a training as an image: every step, and the smoothed line that the eye looks for. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 960, 540
LEFT, TOP, RIGHT, BOTTOM = 92, 64, 28, 72
"""Margins around the axes, in pixels."""
SCALE = 2
"""Drawn so many times larger, then scaled down: Pillow's lines have no soft edges."""
SMOOTHING = 0.05
"""Share of the steps that the smoothed line looks back over."""
GROUND, GRID, INK, FAINT = "white", "#e4e7eb", "#323f4b", "#9fb3c8"
EACH, SMOOTH = "#bcd4f0", "#1f5fae"


def smoothed(losses: Sequence[float]) -> list[float]:
    """The exponential moving average, without a pull to zero at its beginning (Kingma and Ba 2015, section 3)."""
    keep = 1 - 1 / max(1.0, SMOOTHING * len(losses))
    mean, made = 0.0, []
    for count, loss in enumerate(losses, start=1):
        mean = keep * mean + (1 - keep) * loss
        made.append(mean / (1 - keep**count))
    return made


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    power = 10 ** math.floor(math.log10((high - low) / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def draw_loss_curve(losses: Sequence[float], title: str) -> Image.Image:
    """The curve with labelled axes, RGB, 960x540."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), GROUND)
    draw = ImageDraw.Draw(image)
    inside = (LEFT * SCALE, TOP * SCALE, (WIDTH - RIGHT) * SCALE, (HEIGHT - BOTTOM) * SCALE)
    # One step's loss can be far above the others; the scale is made for all but the highest hundredth.
    highest = sorted(losses)[max(0, math.ceil(0.99 * len(losses)) - 1)] if losses else 1.0
    highest = 1.05 * max(highest, max(smoothed(losses), default=1.0)) or 1.0
    steps = max(len(losses), 2)

    def at(step: float, loss: float) -> tuple[float, float]:
        x = inside[0] + (step - 1) / (steps - 1) * (inside[2] - inside[0])
        return x, inside[3] - min(loss / highest, 1.0) * (inside[3] - inside[1])

    small, large = font(15), font(20)
    for loss in ticks(0.0, highest):
        y = at(1, loss)[1]
        draw.line((inside[0], y, inside[2], y), fill=GRID, width=SCALE)
        draw.text((inside[0] - 10 * SCALE, y), f"{loss:g}", fill=INK, font=small, anchor="rm")
    for step in (tick for tick in {1.0, *ticks(1.0, steps, 8)} if tick == int(tick)):
        x = at(step, 0)[0]
        draw.line((x, inside[3], x, inside[3] + 5 * SCALE), fill=INK, width=SCALE)
        draw.text((x, inside[3] + 10 * SCALE), f"{step:g}", fill=INK, font=small, anchor="ma")
    draw.line((inside[0], inside[1], inside[0], inside[3], inside[2], inside[3]), fill=INK, width=SCALE)
    for values, colour, width in ((losses, EACH, 1), (smoothed(losses), SMOOTH, 3)):
        points = [at(step, loss) for step, loss in enumerate(values, start=1)]
        if len(points) == 1:
            (x, y), radius = points[0], 2 * width * SCALE
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        draw.line(points, fill=colour, width=width * SCALE, joint="curve")
    draw.text((inside[0], TOP * SCALE // 2), title, fill=INK, font=large, anchor="lm")
    label = "each step (light), smoothed (dark)"
    draw.text((inside[2], TOP * SCALE // 2), label, fill=FAINT, font=small, anchor="rm")
    draw.text(((inside[0] + inside[2]) // 2, (HEIGHT - 16) * SCALE), "step", fill=INK, font=small, anchor="ms")
    side = Image.new("RGB", (160 * SCALE, 24 * SCALE), GROUND)
    ImageDraw.Draw(side).text((80 * SCALE, 12 * SCALE), "loss", fill=INK, font=small, anchor="mm")
    side = side.rotate(90, expand=True)
    image.paste(side, (10 * SCALE, (inside[1] + inside[3] - side.height) // 2))
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which is there on every machine."""
    return ImageFont.load_default(size * SCALE)
