"""Measures an exported starter pipeline on a fixed set of prompts.

For every item of a prompt its box in the generated picture is compared with what each known subject would look like
there, in pixel and in edge space; the item counts where its own truth is nearest. The ground counts where the mean
colour of the border is near the named colour. Needs only the exported folder: true pictures come from its small
sheet, so no package is fetched. Under a minute on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image
from tqdm import tqdm

from training.paths import export_dir
from training.prompts import CASES, WIDE_CASES, Case
from training.scenes import Item, Scene, draw, placements
from training.vocabulary import GROUNDS, SHAPES, SUBJECTS

STEPS = 8
SIDE = 128
COMPARED = 32  # both pictures are compared at this side
GROUND_TOLERANCE = 0.06  # mean absolute error of the border's colour, on 0..1
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
    told = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))["truths"]
    sheet = np.asarray(Image.open(folder / told["file"]).convert("RGBA"))
    side, columns = told["side"], sheet.shape[1] // told["side"]
    cut = {}
    for number, name in enumerate(told["names"]):
        row, column = divmod(number, columns)
        cut[name] = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
    return cut


def generate(
    pipeline: FluxPipeline, prompts: Sequence[str], seed: int = 0, steps: int = STEPS, side: int = SIDE
) -> np.ndarray:
    """Pictures uint8 (n, side, side, 3); picture i depends on ``seed`` and i only."""
    made = []
    for first in tqdm(range(0, len(prompts), 8), desc="generate", mininterval=2):
        part = list(prompts[first : first + 8])
        generators = [torch.Generator().manual_seed(seed * 100003 + first + offset) for offset in range(len(part))]
        made.append(
            pipeline(
                part,
                num_inference_steps=steps,
                guidance_scale=0.0,
                height=side,
                width=side,
                max_sequence_length=32,
                generator=generators,
                output_type="np",
            ).images
        )
    return np.round(np.concatenate(made) * 255).astype(np.uint8)


def _features(picture: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Pixels and edges of ``box``, as one vector; edges weigh as much as pixels."""
    part = Image.fromarray(picture).crop(box).resize((COMPARED, COMPARED), Image.Resampling.BOX)
    pixels = np.asarray(part, dtype=np.float32) / 255.0
    wide, tall = np.diff(pixels, axis=1), np.diff(pixels, axis=0)
    return np.concatenate([pixels.ravel(), 2.0 * wide.ravel(), 2.0 * tall.ravel()])


def _box(x: float, y: float, share: float) -> tuple[int, int, int, int]:
    half = share / 2
    edges = (x - half, y - half, x + half, y + half)
    left, top, right, bottom = (round(min(max(edge, 0.0), 1.0) * SIDE) for edge in edges)
    return left, top, right, bottom


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
    picture: np.ndarray, scene: Scene, number: int, spot: tuple[float, float, float], truths: dict[str, np.ndarray]
) -> int:
    """The place of item ``number`` among all candidates at ``spot``; pictures equal to the truth do not count."""
    box = _box(*spot)
    made = _features(picture, box)
    distances = []
    for candidate in _candidates(scene.items[number]):
        items = tuple(candidate if n == number else item for n, item in enumerate(scene.items))
        distances.append(
            float(np.square(made - _features(draw(replace(scene, items=items), truths, SIDE), box)).mean())
        )
    return 1 + sum(distance < distances[0] - 1e-9 for distance in distances)


def ground_error(picture: np.ndarray, ground: str) -> float:
    """Mean absolute error, on 0..1, of the median colour of the outer four pixels."""
    border = np.concatenate(
        [
            picture[:4].reshape(-1, 3),
            picture[-4:].reshape(-1, 3),
            picture[:, :4].reshape(-1, 3),
            picture[:, -4:].reshape(-1, 3),
        ]
    )
    return float(np.abs(np.median(border, axis=0) - np.array(GROUNDS[ground])).mean() / 255)


def judge(picture: np.ndarray, case: Case, truths: dict[str, np.ndarray]) -> Verdict:
    """Compare one generated picture with the scene it should show."""
    spots = [(case.scene.items.index(item), (x, y, share)) for item, x, y, share in placements(case.scene)]
    ranks = tuple(_rank(picture, case.scene, number, spot, truths) for number, spot in spots)
    return Verdict(case.prompt, case.kind, ranks, round(ground_error(picture, case.scene.ground), 4))


def figures(verdicts: Sequence[Verdict]) -> dict[str, object]:
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


def evaluate(
    folder: Path, seed: int = 0, steps: int = STEPS, cases: Sequence[Case] = CASES
) -> tuple[dict[str, object], list[Verdict], np.ndarray]:
    """Figures, verdicts and pictures of the pipeline in ``folder`` on ``cases``."""
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    truths = load_truths(folder)
    pictures = generate(pipeline, [case.prompt for case in cases], seed, steps)
    verdicts = [judge(picture, case, truths) for picture, case in zip(pictures, tqdm(cases, desc="judge"), strict=True)]
    return figures(verdicts), verdicts, pictures


def as_grid(pictures: np.ndarray, columns: int) -> Image.Image:
    """Pictures in rows; the last row is filled up with white."""
    rows = -(-len(pictures) // columns)
    padded = np.full((rows * columns, *pictures.shape[1:]), 255, np.uint8)
    padded[: len(pictures)] = pictures
    return Image.fromarray(
        np.concatenate([np.concatenate(padded[r * columns : (r + 1) * columns], 1) for r in range(rows)])
    )


def main() -> None:
    """Print the score and write ``evaluation.json`` into the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=export_dir(), help="folder of the exported pipeline")
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise")
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps a picture")
    parser.add_argument("--wide", action="store_true", help="the harder prompts instead; writes no evaluation.json")
    parser.add_argument("--grid", type=Path, help="also write the pictures here, as one PNG")
    options = parser.parse_args()
    begun = time.time()
    told, verdicts, pictures = evaluate(
        options.model, options.seed, options.steps, WIDE_CASES if options.wide else CASES
    )
    rows = [
        {"prompt": v.prompt, "kind": v.kind, "ranks": v.ranks, "ground_error": v.ground_error, "right": v.right}
        for v in verdicts
    ]
    text = json.dumps({**told, "cases": rows}, indent=1)
    if not options.wide:
        (options.model / RESULT).write_text(text + "\n", encoding="utf-8")
    if options.grid:
        as_grid(pictures, 10).save(options.grid)
    for verdict in verdicts:
        if not verdict.right:
            print(f"wrong: {verdict.prompt}: ranks {verdict.ranks}, ground error {verdict.ground_error}")
    print(json.dumps(told, indent=1))
    print(f"score {told['score']} in {time.time() - begun:.0f} s")


if __name__ == "__main__":
    main()
