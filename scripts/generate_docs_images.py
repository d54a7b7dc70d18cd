#!/usr/bin/env python3
"""Makes the images of docs/modes, of the README and of the template browser with the starter model.

python scripts/generate_docs_images.py [--url URL]

A service must run (`imagegen up`). Run it after another training of the starter model, and look at the result.
The screenshots come from scripts/take_screenshots.py.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image, ImageDraw, ImageFont, ImageOps

from bridge.client import DEFAULT_URL, ImageGenClient

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "modes" / "images"
OVERVIEW = ROOT / "docs" / "images" / "modes.jpg"
TEMPLATES = ROOT / "workflows"
THUMBNAIL = 256
INK, PAPER = (32, 32, 32), (250, 250, 250)
Labelled = tuple[str, Image.Image]


def png(image: Image.Image) -> bytes:
    """``image`` as a file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    """The image in a file."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def row(*images: Labelled, gap: int = 6) -> Image.Image:
    """Images side by side, aligned at their tops, each under its label; no space for labels if none has one."""
    head = 20 if any(label for label, _ in images) else 0
    width = sum(image.width for _, image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (width, head + max(image.height for _, image in images)), PAPER)
    draw, left = ImageDraw.Draw(sheet), 0
    for label, image in images:
        draw.text((left, 3), label, INK, ImageFont.load_default(12))
        sheet.paste(image, (left, head))
        left += image.width + gap
    return sheet


def column(titled: Sequence[Labelled], width: int) -> Image.Image:
    """Images below each other, each under its title, made smaller if they are wider than ``width``."""
    shown = [(title, fitted(image, width)) for title, image in titled]
    sheet = Image.new("RGB", (width, sum(image.height + 46 for _, image in shown)), PAPER)
    draw, top = ImageDraw.Draw(sheet), 0
    for title, image in shown:
        draw.text((0, top + 6), title, INK, ImageFont.load_default(18))
        sheet.paste(image, (0, top + 30))
        top += image.height + 46
    return sheet


def fitted(image: Image.Image, width: int) -> Image.Image:
    """``image``, no wider than ``width``."""
    if image.width <= width:
        return image
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def inset(image: Image.Image, small: Image.Image) -> Image.Image:
    """A thumbnail of ``image`` with ``small``, what it was made from, in its corner."""
    thumbnail = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    framed = small.resize((round(small.width * 64 / small.height), 64), Image.Resampling.LANCZOS)
    framed = ImageOps.expand(ImageOps.expand(framed, 3, "white"), 1, "grey")
    thumbnail.paste(framed, (6, THUMBNAIL - framed.height - 6))
    return thumbnail


def tiled(images: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """A thumbnail of ``images`` in rows, its width THUMBNAIL."""
    side = (THUMBNAIL - gap * (columns - 1)) // columns
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (THUMBNAIL, rows * (side + gap) - gap), "white")
    for number, image in enumerate(images):
        small = image.resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (number % columns * (side + gap), number // columns * (side + gap)))
    return sheet


def stripes(side: int, band: int, margin: int) -> Image.Image:
    """A zorb: a made-up thing that no model knows."""
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for number, top in enumerate(range(margin, side - margin, band)):
        colour = (255, 140, 0) if number % 2 == 0 else (230, 0, 190)
        draw.rectangle((margin, top, side - margin - 1, min(top + band, side - margin) - 1), colour)
    return image


class Artist:
    """Makes images with the starter model, and keeps them for the overview."""

    def __init__(self, client: ImageGenClient) -> None:
        self.client = client
        self.apple = self.make("red apple, blue background")
        self.lora_name = f"zorb-{uuid4().hex[:8]}"  # a name that is taken is not overwritten
        self.overview: dict[str, Image.Image] = {}

    def make(self, prompt: str, seed: int = 1) -> Image.Image:
        """An image of ``prompt``."""
        return self.images("text-to-image", prompt=prompt, seed=seed)[0]

    def files(self, mode: str, **values: Any) -> list[tuple[str, bytes]]:
        """What a mode returns: the name of each result and its bytes."""
        answer = self.client.run_mode(mode, model="starter", **values)
        names = [file.result for file in answer.files]
        return list(zip(names, self.client.images(answer), strict=True))

    def images(self, mode: str, **values: Any) -> list[Image.Image]:
        """The images that a mode returns."""
        return [opened(data) for _, data in self.files(mode, **values)]

    def page(self, mode: str, sheet: Image.Image, thumbnail: Image.Image) -> None:
        """Keep the image of a mode's page and of its template."""
        sheet.save(PAGES / f"{mode}.jpg", quality=90)
        thumbnail.convert("RGB").save(TEMPLATES / f"{mode}.jpg", quality=85)
        self.overview[mode] = sheet
        print(f"{mode}: {sheet.width}x{sheet.height}")

    def text_to_image(self) -> None:
        prompts = ("red apple, blue background", "yellow star above purple heart, pink background")
        prompts += ("smiling face, green background", "rocket, yellow background")
        tiled([self.make(prompt) for prompt in prompts], 2).save(TEMPLATES / "text-to-image.jpg", quality=85)

    def image_to_image(self) -> None:
        images = [("image", self.apple)]
        for strength in (0.3, 0.6, 0.9):
            values = {"prompt": "orange pumpkin, green background", "image": png(self.apple), "seed": 1}
            images.append((f"strength {strength}", self.images("image-to-image", strength=strength, **values)[0]))
        self.page("image-to-image", row(*images), inset(images[-1][1], self.apple))

    def inpaint(self) -> None:
        mask = Image.new("L", self.apple.size)
        ImageDraw.Draw(mask).rectangle((16, 30, 112, 112), 255)
        images = [("image", self.apple), ("mask", mask.convert("RGB"))]
        for prompt in ("grinning face", "laughing face"):
            values = {"prompt": f"{prompt}, blue background", "image": png(self.apple), "mask": png(mask), "seed": 1}
            images.append((f'"{prompt}"', self.images("inpaint", **values)[0]))
        self.page("inpaint", row(*images), inset(images[-2][1], self.apple))

    def outpaint(self) -> None:
        half = self.make("house, blue background").crop((64, 0, 128, 128))
        images = [("half house", half)]
        for seed in (2, 3):
            values = {"prompt": "house, blue background", "image": png(half), "left": 64, "right": 0, "seed": seed}
            images.append((f"left 64, seed {seed}", self.images("outpaint", **values)[0]))
        values = {"prompt": "blue background", "image": png(self.apple), "left": 64, "right": 64, "seed": 3}
        wider = self.images("outpaint", **values)[0]
        sheet = row(*images, ("image", self.apple), ('"blue background", left 64, right 64', wider))
        self.page("outpaint", sheet, inset(images[1][1], half))

    def batch(self) -> None:
        prompts = "red apple, blue background\nyellow star, purple background\ngreen circle"
        images = self.images("batch", prompts=prompts, seeds="1-2")
        self.page("batch", row(*(("", image) for image in images)), tiled([*images[::2], *images[1::2]], 3))

    def grid(self) -> None:
        values = {"prompt": "red apple, blue background", "seed": 1, "x_setting": "prompt"}
        values |= {"x_values": "red, yellow, green", "y_setting": "num_inference_steps"}
        sheet = self.images("grid", y_values="1, 2, 8, 51", **values)[0]
        plain = self.images("grid", y_values="1, 2, 8", **values)[0]
        self.page("grid", sheet, fitted(plain, THUMBNAIL))

    def upscale(self) -> None:
        values = {"prompt": "red apple, blue background", "image": png(self.apple), "seed": 1}
        refined = self.images("upscale", strength=0.3, **values)[0]
        plain = self.apple.resize(refined.size, Image.Resampling.LANCZOS)
        sheet = row(("image", self.apple), ("twice as large, Lanczos", plain), ("upscale, strength 0.3", refined))
        self.page("upscale", sheet, inset(refined, self.apple))

    def train_lora(self) -> None:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as images:
            for number, (band, margin) in enumerate(((12, 22), (11, 20), (13, 24), (12, 16))):
                images.writestr(f"{number}.png", png(stripes(128, band, margin)))
        values = {"pictures": archive.getvalue(), "name": self.lora_name, "trigger": "zorb", "steps": 50, "rank": 8}
        trained = dict(self.files("train-lora", batch=4, seed=3, **values))
        (PAGES / "train-lora-loss.png").write_bytes(trained["loss_curve"])
        shown = stripes(128, 12, 22)
        before, after = (opened(trained[name]) for name in ("before", "samples"))
        large = [image.resize((256, 256), Image.Resampling.LANCZOS) for image in (shown, before, after)]
        sheet = row(*zip(("learned from", "before", "after"), large, strict=True), gap=16)
        self.page("train-lora", sheet, inset(after, shown))

    def lora(self) -> None:
        images = []
        values = {"prompt": "zorb, blue background", "lora": f"{self.lora_name}.safetensors", "seed": 1}
        for strength in (0, 0.25, 0.5, 0.75, 1):
            images.append((f"lora_strength {strength}", self.images("lora", lora_strength=strength, **values)[0]))
        self.page("lora", row(*images), images[-1][1].resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS))

    def make_all(self) -> None:
        """Every image, one mode after the other, and last the overview."""
        self.text_to_image()
        self.image_to_image()
        self.inpaint()
        self.upscale()
        self.train_lora()
        self.lora()
        self.outpaint()
        self.batch()
        self.grid()
        # These need weights that are not here; the images show what guides them.
        guides = [Image.open(PAGES / f"controlnet-{name}.png").convert("RGB") for name in ("canny", "pose")]
        self.overview["controlnet-canny, controlnet-pose: what guides them"] = row(*(("", guide) for guide in guides))
        titled = list(self.overview.items())
        halves = [column(part, 490) for part in (titled[:6], titled[6:])]
        margin = 14
        overview = Image.new("RGB", (2 * 490 + 3 * margin, max(half.height for half in halves) + margin), PAPER)
        for number, half in enumerate(halves):
            overview.paste(half, (margin + number * (490 + margin), margin // 2))
        overview.save(OVERVIEW, quality=88)
        print(f"{OVERVIEW.name}: {overview.width}x{overview.height}")


def main() -> None:
    """Parse the arguments and make the images."""
    parser = argparse.ArgumentParser(description="Make the images of the docs with the starter model.")
    parser.add_argument("--url", default=DEFAULT_URL)
    with ImageGenClient(parser.parse_args().url) as client:
        client.wait_ready(60)
        Artist(client).make_all()


if __name__ == "__main__":
    main()
