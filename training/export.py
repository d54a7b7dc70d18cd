"""Writes the trained parts as a diffusers ``FluxPipeline`` of half-precision safetensors, with its word list.

Needs no finished training: any checkpoint exports, so a longer run can replace the published weights at any time.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from PIL import Image

from training import checkpoint
from training.encode import load_sprites
from training.flow import Starter
from training.models import PROMPT_TOKENS, build_vae
from training.paths import export_dir, work_dir
from training.tokenizer import alias_rows, build_clip_tokenizer, build_t5_tokenizer, token_ids
from training.train_transformer import CHECKPOINT as TRANSFORMER_CHECKPOINT
from training.train_vae import CHECKPOINT as VAE_CHECKPOINT
from training.vocabulary import (
    COLOURS,
    COMPOUNDS,
    COUNTS,
    FILLERS,
    GROUNDS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLES,
    SUBJECTS,
    WORDS,
    all_aliases,
)

TRUTH_SIDE = 40
VOCABULARY, TRUTHS = "vocabulary.json", "truths.png"


@torch.no_grad()
def _copy_alias_rows(model: Starter) -> None:
    for table in (model.t5.shared.weight, model.clip.get_input_embeddings().weight):
        for alias, word in alias_rows():
            table[alias] = table[word]


def load_parts(averaged: bool = True) -> tuple[AutoencoderKL, Starter, dict[str, int | float]]:
    """The autoencoder, the model (its running average by default) and how long each was trained."""
    vae, model = build_vae(), Starter()
    trained: dict[str, int | float] = {}
    vae_state = checkpoint.load(work_dir() / VAE_CHECKPOINT)
    state = checkpoint.load(work_dir() / TRANSFORMER_CHECKPOINT)
    if vae_state is None or state is None:
        raise FileNotFoundError(f"{work_dir()} lacks {VAE_CHECKPOINT} or {TRANSFORMER_CHECKPOINT}; train both first")
    vae.load_state_dict(vae_state["vae"])
    model.load_state_dict(state["average" if averaged else "model"])
    _copy_alias_rows(model)
    trained = {"decoder_steps": vae_state["step"], "steps": state["step"], "minutes": round(state["seconds"] / 60, 1)}
    return vae.eval(), model.eval(), trained


def build_pipeline(vae: AutoencoderKL, model: Starter) -> FluxPipeline:
    """A float32 pipeline around the trained parts."""
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=model.clip,
        tokenizer=build_clip_tokenizer(),
        text_encoder_2=model.t5,
        tokenizer_2=build_t5_tokenizer(),
        transformer=model.transformer,
    )


def vocabulary() -> dict[str, object]:
    """Everything a caller needs to know which words are known, and what the evaluation needs to find its truths.

    The model card adds ``rough_words``, which takes measuring.
    """
    groups: dict[str, list[str]] = {}
    for subject in SUBJECTS:
        groups.setdefault(subject.group, []).append(subject.name)
    aliases = all_aliases()
    return {
        "words": sorted({*WORDS, *aliases}),
        "fillers": list(FILLERS),
        "compounds": COMPOUNDS,
        "aliases": aliases,
        "subjects": groups,
        "natural_colours": {subject.name: subject.natural for subject in SUBJECTS if subject.natural},
        "shapes": SHAPES,
        "colours": COLOURS,
        "grounds": GROUNDS,
        "styles": list(STYLES),
        "sizes": list(SIZES),
        "counts": COUNTS,
        "places": list(PLACES),
        "relations": list(RELATIONS),
        "max_sequence_length": PROMPT_TOKENS,
        "truths": {"file": TRUTHS, "side": TRUTH_SIDE, "names": truth_names()},
    }


def truth_names() -> list[str]:
    """Names of the small true images, in the order of the sheet."""
    return [f"{style}/{subject.name}" for style in STYLES for subject in SUBJECTS] + [f"shape/{s}" for s in SHAPES]


def _truth_sheet() -> Image.Image:
    sprites = load_sprites()
    names, columns = truth_names(), 25
    rows = -(-len(names) // columns)
    sheet = Image.new("RGBA", (columns * TRUTH_SIDE, rows * TRUTH_SIDE))
    for number, name in enumerate(names):
        small = Image.fromarray(sprites[name]).resize((TRUTH_SIDE, TRUTH_SIDE), Image.Resampling.LANCZOS)
        sheet.paste(small, (number % columns * TRUTH_SIDE, number // columns * TRUTH_SIDE))
    return sheet


def export(folder: Path, averaged: bool = True) -> dict[str, int | float]:
    """Write the pipeline and its side files to ``folder``; returns how long the parts were trained."""
    vae, model, trained = load_parts(averaged)
    pipeline = build_pipeline(vae, model)
    for name in ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer"):
        shutil.rmtree(folder / name, ignore_errors=True)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name in ("text_encoder", "text_encoder_2"):
        # transformers loads in the config's dtype but diffusers in float32 when the caller names none; without this
        # a plain FluxPipeline.from_pretrained(folder) mixes halves with floats and fails at the first step.
        config = folder / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    (folder / VOCABULARY).write_text(json.dumps(vocabulary(), indent=1) + "\n", encoding="utf-8")
    _truth_sheet().save(folder / TRUTHS, optimize=True)
    return trained


def main() -> None:
    """Export to where the node pack looks, or elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=export_dir(), help="folder to write; made if missing")
    parser.add_argument("--raw", action="store_true", help="the last weights instead of their running average")
    options = parser.parse_args()
    trained = export(options.to, not options.raw)
    size = sum(path.stat().st_size for path in options.to.rglob("*") if path.is_file())
    print(f"{options.to}: {size / 1e6:.1f} MB, {len(token_ids())} tokens, {trained}")


if __name__ == "__main__":
    main()
