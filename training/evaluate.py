"""Measures an exported starter pipeline on a fixed set of prompts.

For every item of a prompt its box in the generated image is compared with what each known subject would look like
there, in pixel and in edge space; the item counts where its own truth is nearest. The ground counts where the mean
colour of the border is near the named colour. Then every subject is generated alone on four grounds: those that come
out near their truth are sure. Some of these are generated again in larger images. Needs only the exported folder: true
images come from its small sheet, so no package is fetched. Takes about eight minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image
from tqdm import tqdm

from training.paths import export_dir
from training.prompts import CASES, HARDER_CASES, Case
from training.scenes import SIDE, Item, Scene, boxes, draw
from training.vocabulary import GROUNDS, SHAPES, SUBJECTS

STEPS = 8
BATCH = 8
COMPARED = 32  # both images are compared at this side
GROUND_TOLERANCE = 0.06  # mean absolute error of the border's colour, on 0..1
SURE = 0.35  # of an empty image's distance from the truth; above it a subject is a smear of the right colours
LARGER = ((160, 160), (192, 192), (256, 192), (256, 256))  # width and height
ONE_IN = 6  # of the sure subjects, which are generated again in the larger sizes
RESULT = "evaluation.json"


@dataclass(frozen=True)
class Verdict:
    """What was found for one prompt; ``ranks`` holds the place of each item's truth, 1 is nearest."""

    prompt: str
    kind: str
    ranks: tuple[int, ...]
    ground_error: float

    @property
    def right(self) -> bool:
        """Every item nearest to its truth, and the ground as named."""
        return max(self.ranks) == 1 and self.ground_error <= GROUND_TOLERANCE


def load_truths(folder: Path) -> dict[str, np.ndarray]:
    """The small true sprites of an exported folder by name (``flat/cat``, ``shape/star``)."""
    truths = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))["truths"]
    sheet = np.asarray(Image.open(folder / truths["file"]).convert("RGBA"))
    side, columns = truths["side"], sheet.shape[1] // truths["side"]
    cut = {}
    for number, name in enumerate(truths["names"]):
        row, column = divmod(number, columns)
        cut[name] = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
    return cut


def generate(
    pipeline: FluxPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    sizes: Sequence[tuple[int, int]] | None = None,
    noises: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Images uint8 (height, width, 3), 128x128 or of ``sizes``.

    The noise of image i depends on ``seed``, its size and its number in ``noises``, which is i by default.
    """
    noises = noises or range(len(prompts))
    by_size: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes or [(SIDE, SIDE)] * len(prompts)):
        by_size.setdefault(size, []).append(number)
    batches = [
        (size, numbers[first : first + BATCH])
        for size, numbers in by_size.items()
        for first in range(0, len(numbers), BATCH)
    ]
    made: dict[int, np.ndarray] = {}
    for (width, height), numbers in tqdm(batches, desc="generate", mininterval=2):
        images = pipeline(
            [prompts[number] for number in numbers],
            num_inference_steps=steps,
            guidance_scale=0.0,
            height=height,
            width=width,
            max_sequence_length=32,
            generator=[torch.Generator().manual_seed(seed * 100003 + noises[number]) for number in numbers],
            output_type="np",
        ).images
        made.update(zip(numbers, np.round(images * 255).astype(np.uint8), strict=True))
    return [made[number] for number in range(len(prompts))]


def _cut(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part of ``image`` in ``box``: left, top, right, bottom."""
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def _features(part: np.ndarray) -> np.ndarray:
    """Pixels and edges of a part of an image, as one vector; edges weigh as much as pixels."""
    small = Image.fromarray(np.ascontiguousarray(part)).resize((COMPARED, COMPARED), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32) / 255.0
    wide, tall = np.diff(pixels, axis=1), np.diff(pixels, axis=0)
    return np.concatenate([pixels.ravel(), 2.0 * wide.ravel(), 2.0 * tall.ravel()])


def _boxes(scene: Scene, size: tuple[int, int]) -> list[tuple[Item, tuple[int, int, int, int]]]:
    """Each item with the part of its box that is inside the image: left, top, right, bottom."""
    width, height = size
    return [
        (item, (max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)))
        for item, left, top, side in boxes(scene, size)
    ]


def _candidates(item: Item) -> list[Item]:
    """The item as every subject and shape; a coloured shape also competes with itself in every other colour."""
    others = [Item(subject.name, None, item.size) for subject in SUBJECTS]
    others += [Item(shape, None, item.size) for shape in SHAPES]
    if item.colour:
        others += [Item(name, item.colour, item.size) for name in {item.name, *SHAPES}]
        others += [
            replace(item, colour=colour) for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink")
        ]
    return [item, *(other for other in dict.fromkeys(others) if other != item)]


def _rank(
    image: np.ndarray, case: Case, item: Item, box: tuple[int, int, int, int], truths: dict[str, np.ndarray]
) -> int:
    """The place of ``item`` among all candidates in ``box``; images equal to the truth do not count."""
    made, number = _features(_cut(image, box)), case.scene.items.index(item)
    distances = []
    for candidate in _candidates(item):
        items = tuple(candidate if n == number else other for n, other in enumerate(case.scene.items))
        drawn = draw(replace(case.scene, items=items), truths, case.size, part=box)
        distances.append(float(np.square(made - _features(drawn)).mean()))
    return 1 + sum(distance < distances[0] - 1e-9 for distance in distances)


def _distances(
    image: np.ndarray, scene: Scene, truths: dict[str, np.ndarray], features: dict[tuple[str, str], np.ndarray]
) -> tuple[float, float]:
    """From ``image`` to the truth of its one subject and to the nearest other, in shares of an empty image's.

    ``features`` keeps those of the true images of this size, by subject and ground.
    """
    size = (image.shape[1], image.shape[0])
    ((item, box),) = _boxes(scene, size)
    made, own = _features(_cut(image, box)), item.name
    found = {}
    for candidate in _candidates(item):
        key = (candidate.name, scene.ground)
        if key not in features:
            features[key] = _features(draw(replace(scene, items=(candidate,)), truths, size, part=box))
        found[candidate.name] = float(np.square(made - features[key]).mean())
    empty = np.broadcast_to(np.array(GROUNDS[scene.ground], np.uint8), image.shape)
    scale = float(np.square(_features(_cut(empty, box)) - features[own, scene.ground]).mean())
    truth = found.pop(own)
    return truth / scale, min(found.values()) / scale


def recall(
    pipeline: FluxPipeline,
    truths: dict[str, np.ndarray],
    names: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    size: tuple[int, int] = (SIDE, SIDE),
) -> dict[str, float]:
    """Each subject's distance from its truth, the worst of four grounds, in shares of an empty image's distance.

    The images are of ``size`` (width, height), the subject alone in the middle. A subject that is nearer to another's
    truth has at least 1. Its noise and grounds do not depend on the other names.
    """
    numbers = {subject.name: number for number, subject in enumerate(SUBJECTS)}
    colours = [ground for ground in GROUNDS if ground != "white"]
    scenes, noises = [], []
    for name in names:
        first = numbers[name]
        grounds = ["white", *(colours[(first + step) % len(colours)] for step in (0, 3, 6))]
        scenes += [Scene((Item(name),), ground=ground) for ground in grounds]
        noises += [first * len(grounds) + number for number in range(len(grounds))]
    captions = [scene.caption() for scene in scenes]
    images = generate(pipeline, captions, seed, steps, [size] * len(captions), noises)
    worst = dict.fromkeys(names, 0.0)
    features: dict[tuple[str, str], np.ndarray] = {}
    for scene, image in zip(scenes, tqdm(images, desc="judge subjects"), strict=True):
        distance, other = _distances(image, scene, truths, features)
        name = scene.items[0].name
        worst[name] = max(worst[name], distance if distance < other else max(distance, 1.0))
    return {name: round(distance, 3) for name, distance in worst.items()}


def sure(distances: dict[str, float]) -> list[str]:
    """The subjects that come out near their truth on all grounds."""
    return [name for name, distance in distances.items() if distance <= SURE]


def ground_error(image: np.ndarray, ground: str) -> float:
    """Mean absolute error, on 0..1, of the median colour of the outer four pixels."""
    border = np.concatenate(
        [
            image[:4].reshape(-1, 3),
            image[-4:].reshape(-1, 3),
            image[:, :4].reshape(-1, 3),
            image[:, -4:].reshape(-1, 3),
        ]
    )
    return float(np.abs(np.median(border, axis=0) - np.array(GROUNDS[ground])).mean() / 255)


def judge(image: np.ndarray, case: Case, truths: dict[str, np.ndarray]) -> Verdict:
    """Compare one generated image with the scene it should show."""
    ranks = tuple(_rank(image, case, item, box, truths) for item, box in _boxes(case.scene, case.size))
    return Verdict(case.prompt, case.kind, ranks, round(ground_error(image, case.scene.ground), 4))


def figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The score and its parts, as shares of one."""
    ranks = [rank for verdict in verdicts for rank in verdict.ranks]
    kinds = sorted({verdict.kind for verdict in verdicts})
    by_kind = {
        kind: round(float(np.mean([verdict.right for verdict in verdicts if verdict.kind == kind])), 3)
        for kind in kinds
    }
    return {
        "score": round(float(np.mean([verdict.right for verdict in verdicts])), 3),
        "items_nearest": round(float(np.mean([rank == 1 for rank in ranks])), 3),
        "items_in_nearest_five": round(float(np.mean([rank <= 5 for rank in ranks])), 3),
        "grounds_right": round(float(np.mean([v.ground_error <= GROUND_TOLERANCE for v in verdicts])), 3),
        "ground_error": round(float(np.mean([verdict.ground_error for verdict in verdicts])), 4),
        "by_kind": by_kind,
        "prompts": len(verdicts),
        "steps": STEPS,
    }


def load_pipeline(folder: Path) -> FluxPipeline:
    """The pipeline in ``folder``, in float32, without a progress bar for each batch."""
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def evaluate(
    pipeline: FluxPipeline,
    truths: dict[str, np.ndarray],
    cases: Sequence[Case] = CASES,
    seed: int = 0,
    steps: int = STEPS,
) -> tuple[dict[str, Any], list[Verdict], list[np.ndarray]]:
    """Figures, verdicts and images of ``cases``."""
    images = generate(pipeline, [case.prompt for case in cases], seed, steps, [case.size for case in cases])
    verdicts = [judge(image, case, truths) for image, case in zip(images, tqdm(cases, desc="judge"), strict=True)]
    return figures(verdicts), verdicts, images


def as_grid(images: Sequence[np.ndarray], columns: int) -> Image.Image:
    """Images in rows, each in a cell as large as the largest, on white."""
    tall, wide = np.max([image.shape[:2] for image in images], axis=0).tolist()
    sheet = Image.new("RGB", (columns * wide, -(-len(images) // columns) * tall), "white")
    for number, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (number % columns * wide, number // columns * tall))
    return sheet


def _told(figures: dict[str, Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        **figures,
        "cases": [
            {"prompt": v.prompt, "kind": v.kind, "ranks": v.ranks, "ground_error": v.ground_error, "right": v.right}
            for v in verdicts
        ],
    }


def measure(
    pipeline: FluxPipeline, truths: dict[str, np.ndarray], seed: int = 0, steps: int = STEPS
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Everything that is measured of a pipeline, as ``evaluation.json`` holds it, and the images.

    ``subjects`` has each subject's distance from its truth, see :func:`recall`; ``larger`` the same for some of the
    sure ones in each larger size.
    """
    first, verdicts, images = evaluate(pipeline, truths, CASES, seed, steps)
    harder, harder_verdicts, more = evaluate(pipeline, truths, HARDER_CASES, seed, steps)
    subjects = recall(pipeline, truths, [subject.name for subject in SUBJECTS], seed, steps)
    sure_ones = sure(subjects)
    some = sure_ones[::ONE_IN]
    figures = {
        **_told(first, verdicts),
        "harder": _told(harder, harder_verdicts),
        "sure_subjects": len(sure_ones),
        "larger": {f"{size[0]}x{size[1]}": recall(pipeline, truths, some, seed, steps, size) for size in LARGER},
        "subjects": subjects,
    }
    return figures, [*images, *more]


def main() -> None:
    """Print the score and write ``evaluation.json`` into the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=export_dir(), help="folder of the exported pipeline")
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise")
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps an image")
    parser.add_argument("--grid", type=Path, help="also write the images here, as one PNG")
    options = parser.parse_args()
    begun = time.time()
    figures, images = measure(load_pipeline(options.model), load_truths(options.model), options.seed, options.steps)
    (options.model / RESULT).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.grid:
        as_grid(images, 10).save(options.grid)
    for part in (figures, figures["harder"]):
        for case in part["cases"]:
            if not case["right"]:
                print(f"wrong: {case['prompt']}: ranks {case['ranks']}, ground error {case['ground_error']}")
        print(json.dumps({"by_kind": part["by_kind"]}))
    print(f"{figures['sure_subjects']} of {len(SUBJECTS)} subjects are sure")
    for size, distances in figures["larger"].items():
        print(f"{len(sure(distances))} of {len(distances)} of them also at {size}")
    print(f"score {figures['score']}, of the harder ones {figures['harder']['score']}; {time.time() - begun:.0f} s")


if __name__ == "__main__":
    main()
