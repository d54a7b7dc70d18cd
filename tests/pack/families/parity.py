"""What the tests of a family compare the pack with: diffusers alone, and models of single files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from neurolux.catalog.models import Model
from neurolux.catalog.reading import read_catalog
from neurolux.families.registry import family_of
from neurolux.library.single_files import complete, files_model

from tests.pack.loading.test_single_files import shelf_of

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def plain(folder: Path, precision: str, kind: Any) -> Any:
    """The pipeline of diffusers alone, without the gradients that would change a last bit."""
    pipe = kind.from_pretrained(folder, dtype=TYPES[precision])
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for weight in part.parameters():
                weight.data = weight.data.clone()  # see plain_diffusers in tests/pack/stages/test_parity.py
                weight.requires_grad_(False)
    return pipe


def model_of(family: str, main: Path, root: Path) -> Model:
    """The model with the transformer ``main``, and the other files below ``root``."""
    spec = family_of(family)
    return files_model(spec, complete(spec, {"transformer": main}, shelf_of(root)), read_catalog())
