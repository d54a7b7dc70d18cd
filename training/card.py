"""Writes the model card of an exported starter pipeline: figures, images, words and attribution."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from training import checkpoint
from training.encode import MIXTURES, bank_dir
from training.evaluate import RESULT, SURE, Verdict, evaluate, generate, load_pipeline, load_truths, measure, sure
from training.export import VOCABULARY
from training.fetch import PACKAGES
from training.flow import load_bank
from training.paths import export_dir, work_dir
from training.prompts import CASES, HARDER_CASES, UNSEEN
from training.scenes import Scene, meaning
from training.train_transformer import CHECKPOINT as TRANSFORMER_CHECKPOINT
from training.train_vae import CHECKPOINT as VAE_CHECKPOINT
from training.vocabulary import COLOURS, COUNTS, GROUNDS, PLACES, RELATIONS, SHAPES, SIZES, SUBJECTS, all_aliases

TEMPLATE = Path(__file__).with_name("card_template.md")
GRID_PROMPTS = (
    "red apple, blue background",
    "cat",
    "dog, green background",
    "happy face",
    "rocket, purple background",
    "car",
    "house, yellow background",
    "strawberry, pink background",
    "sun, blue background",
    "penguin, orange background",
    "blue circle",
    "yellow star, black background",
    "purple heart, pink background",
    "red circle, left, yellow background",
    "four pink stars, blue background",
    "three apples, blue background",
    "hamburger",
    "panda, green background",
    "rainbow",
    "castle, blue background",
)


def labelled(images: Sequence[np.ndarray], labels: list[str], columns: int) -> Image.Image:
    """Images in rows with their prompts below, in Pillow's own small font."""
    side, foot = images[0].shape[1], 30
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 8) + 8, rows * (side + foot + 8) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = 8 + number % columns * (side + 8), 8 + number // columns * (side + foot + 8)
        sheet.paste(Image.fromarray(image), (left, top))
        pen.rectangle((left - 1, top - 1, left + side, top + side), outline="#cccccc")
        pen.text((left, top + side + 2), "\n".join(textwrap.wrap(label, 21)[:2]), fill="black", font_size=11)
    return sheet


def _trained_scenes() -> list[Scene]:
    encoded = [mixture for mixture in MIXTURES if any(bank_dir(mixture).iterdir())]
    return load_bank("+".join(encoded)).scenes


def seen_in_training() -> set[str]:
    """What every scene of every bank looks like."""
    return {meaning(scene) for scene in _trained_scenes()}


def _unseen_rows(verdicts: list[Verdict]) -> str:
    rows = ["| prompt | rank of each item's truth | error of the ground | right |", "|---|---|---|---|"]
    for verdict in verdicts:
        ranks = ", ".join(map(str, verdict.ranks))
        rows.append(f"| {verdict.prompt} | {ranks} | {verdict.ground_error:.3f} | {'yes' if verdict.right else 'no'} |")
    return "\n".join(rows)


def _words(sure_subjects: list[str]) -> str:
    groups: dict[str, list[str]] = {}
    for subject in SUBJECTS:
        groups.setdefault(subject.group, []).append(
            f"**{subject.name}**" if subject.name in sure_subjects else subject.name
        )
    lines = [f"- *{group}*: {', '.join(names)}" for group, names in groups.items()]
    lines += [
        f"- **shapes**: {', '.join(SHAPES)}",
        f"- **colours of things**: {', '.join(COLOURS)}",
        f"- **grounds** (`blue background`): {', '.join(GROUNDS)}",
        f"- **sizes**: {', '.join(SIZES)}; **counts**: {', '.join(COUNTS)}",
        f"- **places**: {', '.join(PLACES)}, and corners (`top left`); **relations**: {', '.join(RELATIONS)}",
        "- **styles**: `flat style` (the default), `noto style`",
        f"- **words that mean the same** ({len(all_aliases())}, plurals included): "
        + ", ".join(f"{alias} = {word}" for alias, word in all_aliases().items() if not alias.startswith(word)),
    ]
    return "\n".join(lines)


def _training_time() -> dict[str, Any]:
    decoder = checkpoint.load(work_dir() / VAE_CHECKPOINT) or {}
    transformer = checkpoint.load(work_dir() / TRANSFORMER_CHECKPOINT) or {}
    return {
        "decoder_steps": decoder.get("step", 0),
        "steps": transformer.get("step", 0),
        "minutes": round(transformer.get("seconds", 0.0) / 60),
        "scenes": len(_trained_scenes()),
    }


def attribution() -> str:
    """The notice that travels with the weights."""
    makers = {"flat": "Fluent Emoji, copyright Microsoft Corporation", "noto": "Noto Emoji, copyright Google LLC"}
    lines = [
        "The starter model was trained on images of these emoji, and `truths.png` holds small copies of some:",
        "",
    ]
    for package in PACKAGES:
        npm = f"npm package {package.name} {package.version}"
        lines.append(f"- {makers[package.style]}, {package.licence} licence; taken from the {npm}.")
    lines += ["", "The full licences: https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE (MIT) and"]
    lines += ["https://github.com/googlefonts/noto-emoji/blob/main/LICENSE (Apache-2.0)."]
    return "\n".join(lines) + "\n"


def _by_kind(figures: dict[str, Any]) -> str:
    return ", ".join(f"{kind} {share}" for kind, share in figures["by_kind"].items())


def _larger_rows(figures: dict[str, Any]) -> str:
    """A table row for each larger size."""
    return "\n".join(
        f"| of {len(distances)} sure subjects, sure at {size} | {len(sure(distances))} |"
        for size, distances in figures["larger"].items()
    )


def _write_rough_words(folder: Path, sure_subjects: list[str]) -> None:
    """Add to the word list the subjects, and the words that mean them, that are not sure."""
    path = folder / VOCABULARY
    figures = json.loads(path.read_text(encoding="utf-8"))
    rough = {subject.name for subject in SUBJECTS} - set(sure_subjects)
    aliases = {alias for alias, word in all_aliases().items() if word in rough}
    path.write_text(json.dumps(figures | {"rough_words": sorted(rough | aliases)}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Evaluate, make both sheets, fill in the template."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=export_dir(), help="folder of the exported pipeline")
    options = parser.parse_args()
    folder: Path = options.model

    seen = seen_in_training()
    known = [case.prompt for case in UNSEEN if meaning(case.scene) in seen]
    if known:
        raise ValueError(f"these 'unseen' prompts are in the bank, choose others: {known}")
    pipeline, truths = load_pipeline(folder), load_truths(folder)
    figures, _ = measure(pipeline, truths)
    (folder / RESULT).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sure_subjects = sure(figures["subjects"])
    _write_rough_words(folder, sure_subjects)

    labelled(generate(pipeline, GRID_PROMPTS), list(GRID_PROMPTS), 5).quantize(128).save(
        folder / "grid.png", optimize=True
    )
    unseen_told, unseen, images = evaluate(pipeline, truths, UNSEEN)
    labelled(images, [case.prompt for case in UNSEEN], 5).quantize(128).save(folder / "unseen.png", optimize=True)

    values = {
        **figures,
        **_training_time(),
        "by_kind": _by_kind(figures),
        "larger_rows": _larger_rows(figures),
        "unseen_table": _unseen_rows(unseen),
        "unseen_right": f"{sum(v.right for v in unseen)} of {len(unseen)}",
        "unseen_items": unseen_told["items_nearest"],
        "harder_score": figures["harder"]["score"],
        "harder_by_kind": _by_kind(figures["harder"]),
        "words": _words(sure_subjects),
        "sure": len(sure_subjects),
        "sure_limit": SURE,
        "rest": len(SUBJECTS) - len(sure_subjects),
        "subjects_in_all": len(SUBJECTS),
        "cases": len(CASES),
        "harder_cases": len(HARDER_CASES),
    }
    card = TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        card = card.replace("{{" + name + "}}", str(value))
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "ATTRIBUTION.md").write_text(attribution(), encoding="utf-8")
    print(f"{folder / 'README.md'}: score {figures['score']}, unseen prompts right {values['unseen_right']}")


if __name__ == "__main__":
    main()
