"""Scenes: what a caption says and the exact picture it means.

A caption fixes the picture (subjects, colours, sizes, places, ground, style), so the transformer has one target per
caption; only a few pixels of jitter are left to the seed.
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
    STYLES,
    SUBJECTS,
    Subject,
    ground_word,
)

_BY_NAME: dict[str, Subject] = {subject.name: subject for subject in SUBJECTS}

# Side of a sprite as a share of the picture's side: alone, at a named place, and in a group.
_ALONE = {None: 0.80, "small": 0.42, "big": 0.96}
_PLACED = {None: 0.48, "small": 0.32, "big": 0.60}
_GROUPED = {None: 0.46, "small": 0.30, "big": 0.54}
_LOW, _HIGH = 0.27, 0.73
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
    """One picture: one item (perhaps repeated or at a place) or two items in a relation."""

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


def centre(place: str | None) -> tuple[float, float]:
    """The middle of a placed item, as shares of width and height; ``top left`` and the like are corners."""
    words = (place or "center").split()
    x = _LOW if "left" in words else _HIGH if "right" in words else 0.5
    y = _LOW if "top" in words else _HIGH if "bottom" in words else 0.5
    return x, y


def placements(scene: Scene) -> list[tuple[Item, float, float, float]]:
    """Each sprite of ``scene`` as (item, x, y, side), all as shares of the picture."""
    if scene.count:
        item = scene.items[0]
        return [(item, x, y, _GROUPED[item.size]) for x, y in _LAYOUTS[COUNTS[scene.count]]]
    if len(scene.items) == 2:
        spots = _LAYOUTS[2]
        if scene.relation in ("above", "below"):
            spots = ((0.5, _LOW), (0.5, _HIGH)) if scene.relation == "above" else ((0.5, _HIGH), (0.5, _LOW))
        return [(item, x, y, _GROUPED[item.size]) for item, (x, y) in zip(scene.items, spots, strict=True)]
    item = scene.items[0]
    x, y = centre(scene.place)
    return [(item, x, y, (_PLACED if scene.place not in (None, "center") else _ALONE)[item.size])]


def draw(
    scene: Scene, sprites: dict[str, np.ndarray], side: int = 128, rng: np.random.Generator | None = None
) -> np.ndarray:
    """The picture of ``scene``, uint8 (side, side, 3); with ``rng`` each sprite is moved by up to two pixels in 128."""
    canvas = np.empty((side, side, 3), dtype=np.float32)
    canvas[:] = GROUNDS[scene.ground]
    for item, x, y, share in placements(scene):
        size = round(share * side)
        sprite = scale(draw_item(sprites, item, scene.style), size)
        dx, dy = rng.integers(-2, 3, 2) * side // 128 if rng is not None else (0, 0)
        paste(canvas, sprite, round(x * side - size / 2) + int(dx), round(y * side - size / 2) + int(dy))
    return np.clip(canvas, 0, 255).astype(np.uint8)


def random_item(rng: np.random.Generator, shapes: float, tinted: float, sized: float) -> Item:
    """A shape with the chance ``shapes``, else a subject, recoloured with the chance ``tinted``."""
    size = SIZES[rng.integers(2)] if rng.random() < sized else None
    colours = list(COLOURS)
    if rng.random() < shapes:
        colour = colours[rng.integers(len(colours))] if rng.random() < 0.9 else None
        return Item(list(SHAPES)[rng.integers(len(SHAPES))], colour, size)
    subject = SUBJECTS[rng.integers(len(SUBJECTS))]
    if subject.natural and rng.random() < 0.35:
        return Item(subject.name, subject.natural, size)
    coloured = rng.random() < tinted
    return Item(subject.name, colours[rng.integers(len(colours))] if coloured else None, size)


def _no_white_on_white(scene: Scene) -> Scene:
    if scene.ground == "white" and any(item.colour == "white" for item in scene.items):
        return replace(scene, ground="blue")
    return scene


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene of the training mixture: mostly one subject, the rest placed, paired or counted."""
    return _no_white_on_white(_any_scene(rng))


def _any_scene(rng: np.random.Generator) -> Scene:
    ground = "white" if rng.random() < 0.25 else list(GROUNDS)[rng.integers(len(GROUNDS))]
    style = STYLES[int(rng.random() < 0.25)]
    kind = rng.random()
    if kind < 0.60:
        return Scene((random_item(rng, 0.15, 0.12, 0.25),), None, None, None, ground, style)
    if kind < 0.75:
        place = PLACES[rng.integers(len(PLACES))]
        if rng.random() < 0.2:
            place = f"{('top', 'bottom')[rng.integers(2)]} {('left', 'right')[rng.integers(2)]}"
        return Scene((random_item(rng, 0.3, 0.1, 0.3),), place, None, None, ground, style)
    if kind < 0.92:
        relation = "and" if rng.random() < 0.6 else ("above", "below")[rng.integers(2)]
        items = (random_item(rng, 0.35, 0.1, 0.2), random_item(rng, 0.35, 0.1, 0.2))
        return Scene(items, None, relation, None, ground, style)
    return Scene((random_item(rng, 0.3, 0.1, 0.1),), None, None, list(COUNTS)[rng.integers(len(COUNTS))], ground, style)


def random_core_scene(rng: np.random.Generator) -> Scene:
    """A scene of the core mixture: mostly one core subject in the middle, then shapes, places, pairs and counts."""
    ground = "white" if rng.random() < 0.25 else list(GROUNDS)[rng.integers(len(GROUNDS))]
    kind = rng.random()
    name = CORE[rng.integers(len(CORE))]
    natural = _BY_NAME[name].natural
    subject = Item(name, natural if rng.random() < 0.35 else None)
    shapes = [random_item(rng, 1.0, 0.0, 0.15) for _ in range(2)]
    if ground == "white" and any(shape.colour == "white" for shape in shapes):
        ground = "blue"
    item = subject if rng.random() < 0.5 else shapes[0]
    if kind < 0.66:
        return Scene((subject,), ground=ground)
    if kind < 0.80:
        return Scene((shapes[0],), ground=ground)
    if kind < 0.89:
        return Scene((item,), place=PLACES[rng.integers(4)], ground=ground)
    if kind < 0.95:
        return Scene((item, shapes[1]), relation=("and", "above")[rng.integers(2)], ground=ground)
    return Scene((item,), count=list(COUNTS)[rng.integers(len(COUNTS))], ground=ground)


def _corner(rng: np.random.Generator) -> str:
    return f"{('top', 'bottom')[rng.integers(2)]} {('left', 'right')[rng.integers(2)]}"


def _core_item(rng: np.random.Generator, sized: float = 0.0) -> Item:
    """A core subject in its own colours, which are named now and then."""
    name = CORE[rng.integers(len(CORE))]
    size = SIZES[rng.integers(2)] if rng.random() < sized else None
    return Item(name, _BY_NAME[name].natural if rng.random() < 0.3 else None, size)


def _core_or_shape(rng: np.random.Generator) -> Item:
    return _core_item(rng, 0.08) if rng.random() < 0.5 else random_item(rng, 1.0, 0.0, 0.08)


def random_composed_scene(rng: np.random.Generator) -> Scene:
    """A scene of the composed mixture: half one subject in the middle, half shapes, places, pairs and counts."""
    return _no_white_on_white(_any_composed_scene(rng))


def random_placed_scene(rng: np.random.Generator) -> Scene:
    """A scene of the placed mixture: half pairs of two different things, then places and counts."""
    ground = "white" if rng.random() < 0.2 else list(GROUNDS)[rng.integers(len(GROUNDS))]
    kind, first, second = rng.random(), _core_or_shape(rng), _core_or_shape(rng)
    if kind < 0.5 and first.name != second.name:
        relation = "and" if rng.random() < 0.4 else RELATIONS[1 + rng.integers(2)]
        return _no_white_on_white(Scene((first, second), relation=relation, ground=ground))
    if kind < 0.85:
        place = _corner(rng) if rng.random() < 0.15 else PLACES[rng.integers(4)]
        return _no_white_on_white(Scene((first,), place=place, ground=ground))
    return _no_white_on_white(Scene((first,), count=list(COUNTS)[rng.integers(len(COUNTS))], ground=ground))


def _any_composed_scene(rng: np.random.Generator) -> Scene:
    ground = "white" if rng.random() < 0.2 else list(GROUNDS)[rng.integers(len(GROUNDS))]
    kind = rng.random()
    if kind < 0.26:
        return Scene((_core_item(rng),), ground=ground)
    if kind < 0.39:
        return Scene((random_item(rng, 0.0, 0.0, 0.0),), ground=ground)
    if kind < 0.48:
        item = _core_item(rng) if rng.random() < 0.8 else random_item(rng, 0.0, 0.0, 0.0)
        return Scene((item,), ground=ground, style="noto")
    if kind < 0.53:
        return Scene((_core_item(rng, 1.0),), ground=ground)
    if kind < 0.57:
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        return Scene((replace(_core_item(rng), colour=colour),), ground=ground)
    if kind < 0.66:
        return Scene((random_item(rng, 1.0, 0.0, 0.35),), ground=ground)
    if kind < 0.79:
        place = _corner(rng) if rng.random() < 0.2 else PLACES[rng.integers(len(PLACES))]
        return Scene((_core_or_shape(rng),), place=place, ground=ground)
    if kind < 0.92:
        relation = "and" if rng.random() < 0.5 else RELATIONS[1 + rng.integers(2)]
        return Scene((_core_or_shape(rng), _core_or_shape(rng)), relation=relation, ground=ground)
    return Scene((_core_or_shape(rng),), count=list(COUNTS)[rng.integers(len(COUNTS))], ground=ground)


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
