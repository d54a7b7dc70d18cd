"""Norms in LoRA files: what is added to the weight and the bias of a norm, under each name, in each class of norms."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.pack.adapters.test_lora_dialects import QKV, noise
from tests.pack.applied import make_image, with_loras
from tests.pack.pipelines import borrow, handle_for

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
STRENGTH = 0.5
RMS = QKV[0].replace("to_q", "norm_q")
"""A norm of a transformer with a weight and no bias."""
NORMS: dict[str, tuple[str, ...]] = {
    "tiny-flux-dev": (RMS, "single_transformer_blocks.0.attn.norm_k"),
    "tiny-z-image": ("layers.0.attention_norm1", "layers.0.attention.norm_q"),
    "tiny-sdxl": (
        "down_blocks.0.resnets.0.norm1", "mid_block.attentions.0.transformer_blocks.0.norm2",
        "mid_block.attentions.0.norm",
    ),
}  # fmt: skip

ORIGINAL = {RMS: "double_blocks.0.img_attn.norm.query_norm", NORMS["tiny-flux-dev"][1]: "single_blocks.0.norm.key_norm"}
"""The authors' names."""


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("tiny-flux-dev", ("w_norm", "b_norm")),
        ("tiny-flux-dev, authors' names", ("diff", "diff_b")),
        ("tiny-z-image", ("diff", "diff_b")),
        ("tiny-sdxl", ("w_norm", "b_norm")),
        ("tiny-sdxl", ("diff", "diff_b")),
        ("tiny-sdxl", (None, "diff_b")),
        ("tiny-sdxl", (None, "b_norm")),
    ],
)
def test_a_norm_is_changed_as_its_weights_are(
    tiny_models: dict[str, Path], tmp_path: Path, model: str, names: tuple[str | None, str]
) -> None:
    model, _, authors = model.partition(", ")
    base = handle_for(tiny_models[model], precision="fp32")
    before = make_image(base)
    loaded = borrow(base)
    generator, state, expected, values = torch.Generator().manual_seed(5), {}, {}, {}
    for target in NORMS[model]:
        norm: Any = copy.deepcopy(loaded.denoiser.get_submodule(target))
        image = isinstance(norm, torch.nn.GroupNorm)
        shape = (1, len(norm.weight), 6, 6) if image else (2, 3, 5, len(norm.weight))
        values[target] = noise(generator, *shape) * 5
        name = ORIGINAL[target] if authors else target
        stem = f"lora_{'unet' if authors or 'sdxl' in model else 'transformer'}_{name.replace('.', '_')}"
        with torch.no_grad():
            for kind, name in zip(("weight", "bias"), names, strict=True):
                if name is not None and (weight := getattr(norm, kind, None)) is not None:
                    state[f"{stem}.{name}"] = noise(generator, len(weight))
                    weight += STRENGTH * state[f"{stem}.{name}"]
            expected[target] = norm(values[target])
    path = tmp_path / "norms.safetensors"
    save_file(state, path)
    one = (path, STRENGTH, STRENGTH)
    with torch.no_grad():
        borrow(with_loras(base, one))
        (found,) = loaded.loras.loaded.values()
        assert found.note is None
        for target, wanted in expected.items():
            assert torch.allclose(loaded.denoiser.get_submodule(target)(values[target]), wanted, atol=1e-5), target
    made = make_image(with_loras(base, one))
    assert not torch.equal(made, before)
    assert torch.equal(make_image(base), before)


def test_norms_of_streamed_blocks_are_changed_too(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "norms.safetensors"
    save_file({f"transformer.{RMS}.w_norm": noise(torch.Generator().manual_seed(5), 16)}, path)
    images = [
        make_image(with_loras(handle_for(tiny_models["tiny-flux-dev"], precision="fp32", offload=mode), (path, 1, 1)))
        for mode in ("none", "stream")
    ]
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({f"transformer.{QKV[0]}.w_norm": (32,)}, "a change of a norm for another layer"),
        ({f"transformer.{QKV[0]}.diff": (32,)}, "a change of a norm for another layer"),
        (
            {f"transformer.{RMS}.lora_{side}.weight": (16, 16) for side in "AB"},
            "a change of a norm for another layer, or the reverse",
        ),
        ({f"transformer.{RMS}.w_norm": (3,)}, "the file has 3"),
    ],
)
def test_what_does_not_fit_a_norm_is_refused_by_its_name(
    tiny_models: dict[str, Path], tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    from neurolux.errors import InvalidParameter

    path = tmp_path / "bad.safetensors"
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(InvalidParameter, match=f"bad.safetensors.*{message}"):
        make_image(with_loras(handle_for(tiny_models["tiny-flux-dev"]), (path, 1.0, 1.0)))
