"""Renders emoji and shapes to RGBA sprites, once, into the work folder.

A sprite is a 128x128 RGBA image; ``all`` holds every emoji both packages share (for the VAE), ``subjects`` the
chosen vocabulary (for the transformer).
"""

from __future__ import annotations

import io
import re

import cairosvg
import numpy as np
from PIL import Image
from tqdm import tqdm

from training.fetch import PACKAGES, load_icons
from training.paths import work_dir
from training.vocabulary import SHAPES, SUBJECTS

SPRITE_SIZE = 128
_PEOPLE = re.compile(
    r"(^|-)(man|woman|person|men|women|people|boy|girl|flag|keycap|light|medium|dark|skin|button)(-|$)"
)

_SHAPE_BODIES = {
    "circle": '<circle cx="50" cy="50" r="40"/>',
    "square": '<rect x="14" y="14" width="72" height="72"/>',
    "triangle": '<path d="M50 12 L92 86 L8 86 Z"/>',
    "star": '<path d="M50 6 L61.8 38.2 L96 39.1 L68.8 60.0 L78.5 93 L50 73.5'
    ' L21.5 93 L31.2 60.0 L4 39.1 L38.2 38.2 Z"/>',
    "heart": '<path d="M50 90 C20 66 6 50 6 32 C6 18 17 9 29 9 C38 9 46 14 50 22 C54 14 62 9 71 9 C83 9 94 18 94 32'
    ' C94 50 80 66 50 90 Z"/>',
}


def rasterize(svg: str, size: int = SPRITE_SIZE) -> np.ndarray:
    """``svg`` as a uint8 array (size, size, 4)."""
    png = io.BytesIO()
    cairosvg.svg2png(bytestring=svg.encode(), write_to=png, output_width=size, output_height=size)
    return np.asarray(Image.open(png).convert("RGBA"))


def shape_svg(name: str) -> str:
    """A black shape on nothing."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{_SHAPE_BODIES[name]}</svg>'


def _render_all() -> np.ndarray:
    icons = [load_icons(package) for package in PACKAGES]
    shared = sorted(name for name in icons[0] if name in icons[1] and not _PEOPLE.search(name))
    return np.stack([rasterize(style[name]) for name in tqdm(shared, desc="all emoji") for style in icons])


def _render_subjects() -> dict[str, np.ndarray]:
    sprites = {f"shape/{name}": rasterize(shape_svg(name)) for name in SHAPES}
    for package in PACKAGES:
        icons = load_icons(package)
        for subject in tqdm(SUBJECTS, desc=f"subjects, {package.style}"):
            sprites[f"{package.style}/{subject.name}"] = rasterize(icons[subject.icon])
    return sprites


def main() -> None:
    """Write ``all.npy`` and ``subjects.npz``; what exists is kept."""
    everything, subjects = work_dir() / "all.npy", work_dir() / "subjects.npz"
    if not subjects.exists():
        np.savez_compressed(subjects, **_render_subjects())  # pyright: ignore[reportArgumentType]
    if not everything.exists():
        np.save(everything, _render_all())
    print(
        f"{everything}: {np.load(everything, mmap_mode='r').shape}; {subjects}: {len(np.load(subjects).files)} sprites"
    )


if __name__ == "__main__":
    main()
