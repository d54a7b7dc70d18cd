"""Scenes: what a caption says and the exact image it means.

A caption fixes the image (subjects, colours, sizes, places, ground, style), so the transformer has one target per
caption; now and then the whole scene is moved by a few pixels.

Things at a place, in pairs and in groups have the same sizes, and their middles lie on the grid of the transformer's
16-pixel tokens, so that a thing is the same tokens wherever it stands: one image to learn, not one for each place.
For the same reason a larger image is a small one with more ground.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from training.compositing import paste, scale
from training.vocabulary import (
    COLOURS,
    CORE,
    COUNTS,
    GROUNDS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    SUBJECTS,
    Subject,
    ground_word,
)

_BY_NAME: dict[str, Subject] = {subject.name: subject for subject in SUBJECTS}
_OTHERS = tuple(subject.name for subject in SUBJECTS if subject.name not in CORE)

TOKEN = 16  # pixels
SIDE = 128  # of the smallest image, which things are sized for
# Side of a sprite as a share of SIDE: alone; at a named place, in a pair or in a group.
# A small thing alone is as large as one at a place.
_ALONE = {None: 0.80, "small": 0.46, "big": 0.96}
_PLACED = {None: 0.46, "small": 0.30, "big": 0.54}
_LOW, _HIGH = 0.25, 0.75
_MOVED = 0.2  # share of training images off the grid: a given image may lie anywhere
_LAYOUTS = {
    2: ((_LOW, 0.5), (_HIGH, 0.5)),
    3: ((0.5, _LOW), (_LOW, _HIGH), (_HIGH, _HIGH)),
    4: ((_LOW, _LOW), (_HIGH, _LOW), (_LOW, _HIGH), (_HIGH, _HIGH)),
}


@dataclass(frozen=True)
class Item:
    """One thing in a scene: an emoji subject or a shape, perhaps coloured and sized."""

    name: str
    colour: str | None = None
    size: str | None = None

    def words(self) -> str:
        """Its part of the caption, size first: ``small red circle``."""
        return " ".join(word for word in (self.size, self.colour, self.name) if word)


@dataclass(frozen=True)
class Scene:
    """One image: one item (perhaps repeated or at a place) or two items in a relation."""

    items: tuple[Item, ...]
    place: str | None = None
    relation: str | None = None
    count: str | None = None
    ground: str = "white"
    style: str = "flat"

    def caption(self) -> str:
        """The plain caption: ``red apple, left, flat style, blue background``."""
        subject = f" {self.relation} ".join(item.words() for item in self.items)
        parts = [f"{self.count} {subject}" if self.count else subject]
        parts += [self.place] if self.place else []
        parts += ["noto style"] if self.style == "noto" else []
        parts += [f"{self.ground} background"] if self.ground != "white" else []
        return ", ".join(parts)


def meaning(scene: Scene) -> str:
    """The caption with every default left out, equal for scenes that look the same (``yellow sun``, ``sun``)."""

    def plain(item: Item) -> Item:
        own = SHAPES[item.name] if item.name in SHAPES else _BY_NAME[item.name].natural
        return replace(item, colour=None) if item.colour == own else item

    place = None if scene.place == "center" else scene.place
    return replace(scene, items=tuple(map(plain, scene.items)), place=place).caption()


def tint(sprite: np.ndarray, colour: str) -> np.ndarray:
    """``sprite`` recoloured: its lightness kept, dark parts to a dark and light parts to a pale tone of ``colour``."""
    rgb = sprite[..., :3].astype(np.float32)
    light = (rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None] / 255.0
    full = np.array(COLOURS[colour], dtype=np.float32)
    dark = full * 0.35
    lower, upper = light / 0.55, (light - 0.55) / 0.45
    mixed = np.where(light < 0.55, dark + lower * (full - dark), full + 0.75 * upper * (255.0 - full))
    return np.concatenate([np.clip(mixed, 0, 255).astype(np.uint8), sprite[..., 3:]], axis=2)


def draw_item(sprites: dict[str, np.ndarray], item: Item, style: str) -> np.ndarray:
    """The RGBA sprite of ``item``."""
    if item.name in SHAPES:
        mask = sprites[f"shape/{item.name}"][..., 3:]
        colour = np.broadcast_to(np.array(COLOURS[item.colour or SHAPES[item.name]], np.uint8), (*mask.shape[:2], 3))
        return np.concatenate([colour, mask], axis=2)
    sprite = sprites[f"{style}/{item.name}"]
    if item.colour is None or item.colour == _BY_NAME[item.name].natural:
        return sprite
    return tint(sprite, item.colour)


def towards(place: str | None) -> tuple[float, float]:
    """How far right and how far down ``place`` is, 0 to 1; ``top left`` and the like are corners."""
    words = (place or "center").split()
    x = 0.0 if "left" in words else 1.0 if "right" in words else 0.5
    y = 0.0 if "top" in words else 1.0 if "bottom" in words else 0.5
    return x, y


def placements(scene: Scene) -> list[tuple[Item, float, float, float]]:
    """Each sprite of ``scene`` as (item, x, y, side), in shares of SIDE, in a square image of SIDE."""
    if scene.count:
        item = scene.items[0]
        return [(item, x, y, _PLACED[item.size]) for x, y in _LAYOUTS[COUNTS[scene.count]]]
    if len(scene.items) == 2:
        spots = _LAYOUTS[2]
        if scene.relation in ("above", "below"):
            spots = ((0.5, _LOW), (0.5, _HIGH)) if scene.relation == "above" else ((0.5, _HIGH), (0.5, _LOW))
        return [(item, x, y, _PLACED[item.size]) for item, (x, y) in zip(scene.items, spots, strict=True)]
    item = scene.items[0]
    x, y = (_LOW + (_HIGH - _LOW) * share for share in towards(scene.place))
    return [(item, x, y, (_PLACED if scene.place not in (None, "center") else _ALONE)[item.size])]


def ground_before(place: str | None, size: tuple[int, int]) -> tuple[int, int]:
    """Pixels left of and above the square of SIDE in an image of ``size`` (width, height), whole tokens.

    A larger image has more ground: half on each side, or all of it on the side away from a place.
    """
    x, y = towards(place)
    return int(x * (size[0] - SIDE)) // TOKEN * TOKEN, int(y * (size[1] - SIDE)) // TOKEN * TOKEN


def boxes(scene: Scene, size: tuple[int, int] = (SIDE, SIDE)) -> list[tuple[Item, int, int, int]]:
    """Each sprite of ``scene`` in an image of ``size`` (width, height) as (item, left, top, side), in pixels."""
    right, down = ground_before(scene.place, size)
    found = []
    for item, x, y, share in placements(scene):
        side = round(share * SIDE)
        half = (side + 1) // 2
        found.append((item, right + round(x * SIDE) - half, down + round(y * SIDE) - half, side))
    return found


def draw(
    scene: Scene,
    sprites: dict[str, np.ndarray],
    size: tuple[int, int] = (SIDE, SIDE),
    rng: np.random.Generator | None = None,
    part: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """The image of ``scene``, uint8 (height, width, 3); with ``rng``, now and then moved by up to three pixels.

    With ``part`` (left, top, right, bottom), only that part of the image is made.
    """
    dx, dy = map(int, rng.integers(-3, 4, 2)) if rng is not None and rng.random() < _MOVED else (0, 0)
    first_x, first_y, last_x, last_y = part or (0, 0, *size)
    canvas = np.empty((last_y - first_y, last_x - first_x, 3), dtype=np.float32)
    canvas[:] = GROUNDS[scene.ground]
    for item, left, top, side in boxes(scene, size):
        sprite = scale(draw_item(sprites, item, scene.style), side)
        paste(canvas, sprite, left + dx - first_x, top + dy - first_y)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _shape(rng: np.random.Generator, sized: float) -> Item:
    size = SIZES[rng.integers(2)] if rng.random() < sized else None
    colour = list(COLOURS)[rng.integers(len(COLOURS))] if rng.random() < 0.9 else None
    return Item(list(SHAPES)[rng.integers(len(SHAPES))], colour, size)


def _subject(rng: np.random.Generator, core: float, sized: float = 0.0) -> Item:
    """A subject in its own colours, which are named now and then; of the core with the chance ``core``."""
    names = CORE if rng.random() < core else _OTHERS
    name = names[rng.integers(len(names))]
    size = SIZES[rng.integers(2)] if rng.random() < sized else None
    return Item(name, _BY_NAME[name].natural if rng.random() < 0.3 else None, size)


def _shape_or_subject(rng: np.random.Generator) -> Item:
    return _shape(rng, 0.08) if rng.random() < 0.5 else _subject(rng, 0.8, 0.08)


def _ground(rng: np.random.Generator) -> str:
    return "white" if rng.random() < 0.2 else list(GROUNDS)[rng.integers(len(GROUNDS))]


def _at_a_place(rng: np.random.Generator) -> Scene:
    place = PLACES[rng.integers(len(PLACES))]
    if rng.random() < 0.2:
        place = f"{('top', 'bottom')[rng.integers(2)]} {('left', 'right')[rng.integers(2)]}"
    return Scene((_shape_or_subject(rng),), place=place)


def _pair(rng: np.random.Generator) -> Scene:
    first, second = _shape_or_subject(rng), _shape_or_subject(rng)
    while first.name == second.name:
        second = _shape_or_subject(rng)
    relation = "and" if rng.random() < 0.4 else RELATIONS[1 + rng.integers(2)]
    return Scene((first, second), relation=relation)


def _counted(rng: np.random.Generator) -> Scene:
    return Scene((_shape_or_subject(rng),), count=list(COUNTS)[rng.integers(len(COUNTS))])


def _on_a_ground(scene: Scene, rng: np.random.Generator) -> Scene:
    """``scene`` on some ground, never white on white."""
    ground = _ground(rng)
    pale = ground == "white" and any(item.colour == "white" for item in scene.items)
    return replace(scene, ground="blue" if pale else ground)


def random_composed_scene(rng: np.random.Generator) -> Scene:
    """A scene of the composed mixture: half one subject in the middle, half shapes, places, pairs and counts."""
    kind = rng.random()
    if kind < 0.45:
        scene = Scene((_subject(rng, 0.2),))
    elif kind < 0.52:
        scene = Scene((_subject(rng, 0.8),), style="noto")
    elif kind < 0.56:
        scene = Scene((_subject(rng, 0.8, 1.0),))
    elif kind < 0.60:
        scene = Scene((replace(_subject(rng, 0.8), colour=list(COLOURS)[rng.integers(len(COLOURS))]),))
    elif kind < 0.66:
        scene = Scene((_shape(rng, 0.35),))
    elif kind < 0.78:
        scene = _at_a_place(rng)
    elif kind < 0.92:
        scene = _pair(rng)
    else:
        scene = _counted(rng)
    return _on_a_ground(scene, rng)


def random_placed_scene(rng: np.random.Generator) -> Scene:
    """A scene of the placed mixture: half pairs of two different things, then places and counts."""
    kind = rng.random()
    return _on_a_ground(_pair(rng) if kind < 0.55 else _at_a_place(rng) if kind < 0.85 else _counted(rng), rng)


def vary_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the ways to say ``scene``: parts reordered, the defaults sometimes named, now and then an unknown word."""
    subject = f" {scene.relation} ".join(item.words() for item in scene.items)
    if scene.count:
        subject = f"{scene.count} {subject}"
    if scene.place:
        subject = f"{subject} {scene.place}" if rng.random() < 0.8 else f"{scene.place} {subject}"
    parts = [subject]
    if scene.style == "noto" or rng.random() < 0.25:
        parts.append(f"{scene.style} style" if rng.random() < 0.7 else scene.style)
    if scene.ground != "white" or rng.random() < 0.3:
        parts.append(ground_word(scene.ground))
    if rng.random() < 0.25:
        parts = [parts[i] for i in rng.permutation(len(parts))]
    words = " ".join(parts).split()
    if rng.random() < 0.06:
        for _ in range(rng.integers(1, 3)):
            words.insert(int(rng.integers(len(words) + 1)), "<unk>")
    return " ".join(words)
