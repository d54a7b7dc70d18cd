"""Every dialect of LoRA files: loaded whole, reported as n of m layers, or refused by its name.

The effect on each layer is compared with that of the sum of the weights, computed here from the file's definition.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tests.pack.applied import make_image, with_loras
from tests.pack.pipelines import borrow, handle_for

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
RANK, ALPHA = 4, 2.0
QKV = tuple(f"transformer_blocks.0.attn.to_{name}" for name in "qkv")
ADDED = tuple(f"transformer_blocks.0.attn.add_{name}_proj" for name in "qkv")
SINGLE = "single_transformer_blocks.0"
FLUX = {
    "double_blocks.0.img_attn.qkv": QKV,
    "double_blocks.0.txt_attn.qkv": ADDED,
    "double_blocks.0.img_attn.proj": ("transformer_blocks.0.attn.to_out.0",),
    "double_blocks.0.img_mlp.0": ("transformer_blocks.0.ff.net.0.proj",),
    "double_blocks.0.txt_mlp.2": ("transformer_blocks.0.ff_context.net.2",),
    "double_blocks.0.img_mod.lin": ("transformer_blocks.0.norm1.linear",),
    "single_blocks.0.linear1": (*(f"{SINGLE}.attn.to_{name}" for name in "qkv"), f"{SINGLE}.proj_mlp"),
    "single_blocks.0.linear2": (f"{SINGLE}.proj_out",),
    "single_blocks.0.modulation.lin": (f"{SINGLE}.norm.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
"""BFL's layers, and the layers of diffusers that each of them joins."""
SDXL = {
    "input_blocks.1.0.in_layers.2": ("down_blocks.0.resnets.0.conv1",),
    "input_blocks.2.0.op": ("down_blocks.0.downsamplers.0.conv",),
    "input_blocks.3.1.transformer_blocks.0.attn1.to_q": ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",),
    "input_blocks.3.1.proj_in": ("down_blocks.1.attentions.0.proj_in",),
    "middle_block.1.transformer_blocks.0.attn2.to_k": ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k",),
    "middle_block.2.out_layers.3": ("mid_block.resnets.1.conv2",),
    "output_blocks.0.1.transformer_blocks.0.ff.net.2": ("up_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",),
    "output_blocks.1.2.conv": ("up_blocks.0.upsamplers.0.conv",),
    "output_blocks.2.0.skip_connection": ("up_blocks.1.resnets.0.conv_shortcut",),
}
"""Stability's layers of the tiny UNet with a layer a level."""
State = dict[str, torch.Tensor]
Make = Callable[[tuple[int, ...], torch.Generator], tuple[State, torch.Tensor]]
"""(shape of a weight, random numbers) -> a layer's tensors, and what they add."""


def noise(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * 0.3


def lora(down: str, up: str, alpha: str = "") -> Make:
    """Factors, under these names."""

    def make(shape: tuple[int, ...], generator: torch.Generator) -> tuple[State, torch.Tensor]:
        first, second = noise(generator, RANK, *shape[1:]), noise(generator, shape[0], RANK)
        state = {down: first, up: second if len(shape) == 2 else second[:, :, None, None]}
        if alpha:
            state[alpha] = torch.tensor(ALPHA)
        added = (second @ first.flatten(1)).view(shape) * (ALPHA / RANK if alpha else 1.0)
        return state, added

    return make


def locon_mid(shape: tuple[int, ...], generator: torch.Generator) -> tuple[State, torch.Tensor]:
    if len(shape) == 2:
        return lora(".lora_down.weight", ".lora_up.weight", ".alpha")(shape, generator)
    down, up = noise(generator, RANK, shape[1], 1, 1), noise(generator, shape[0], RANK, 1, 1)
    mid = noise(generator, RANK, RANK, *shape[2:])
    added = torch.einsum("oi,ijkl,jc->ockl", up[:, :, 0, 0], mid, down[:, :, 0, 0]) * ALPHA / RANK
    state = {".lora_down.weight": down, ".lora_up.weight": up, ".lora_mid.weight": mid, ".alpha": torch.tensor(ALPHA)}
    return state, added


def lokr(parts: str) -> Make:
    """``whole``, or with the second side, or both, as products."""

    def make(shape: tuple[int, ...], generator: torch.Generator) -> tuple[State, torch.Tensor]:
        outer, inner = (2, 2), (shape[0] // 2, shape[1] // 2, *shape[2:])
        state: State = {".alpha": torch.tensor(ALPHA)}
        left, scale = noise(generator, *outer), 1.0
        if parts == "both":
            first, second = noise(generator, 2, RANK), noise(generator, RANK, 2)
            left, scale = first @ second, ALPHA / RANK
            state |= {".lokr_w1_a": first, ".lokr_w1_b": second}
        else:
            state[".lokr_w1"] = left
        if parts == "whole":
            right = noise(generator, *inner)
            state[".lokr_w2"] = right
        else:
            first, second = noise(generator, inner[0], RANK), noise(generator, RANK, torch.Size(inner[1:]).numel())
            right, scale = (first @ second).view(inner), ALPHA / RANK
            state |= {".lokr_w2_a": first, ".lokr_w2_b": second}
        wide = left if len(shape) == 2 else left[:, :, None, None]
        return state, torch.kron(wide, right) * scale

    return make


def loha(shape: tuple[int, ...], generator: torch.Generator, rank: int = 2) -> tuple[State, torch.Tensor]:
    inputs = torch.Size(shape[1:]).numel()
    parts = [noise(generator, *size) for size in ((shape[0], rank), (rank, inputs)) * 2]
    names = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
    added = (parts[0] @ parts[1]) * (parts[2] @ parts[3]) * ALPHA / rank
    return {**dict(zip(names, parts, strict=True)), ".alpha": torch.tensor(ALPHA)}, added.view(shape)


def loha_wide(shape: tuple[int, ...], generator: torch.Generator) -> tuple[State, torch.Tensor]:
    return loha(shape, generator, 8)


def difference(shape: tuple[int, ...], generator: torch.Generator) -> tuple[State, torch.Tensor]:
    added = noise(generator, *shape)
    return {".diff": added}, added


@dataclass(frozen=True)
class Dialect:
    """How a file names a layer, and how it stores what is added."""

    name: Callable[[str], str]
    make: Make
    layers: dict[str, tuple[str, ...]]
    ours: bool = False
    """Whether the names are diffusers'."""
    more: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensors of layers that the model does not have."""
    note: str = ""
    """What the user is told."""


def kohya(prefix: str = "lora_unet_") -> Callable[[str], str]:
    return lambda name: prefix + name.replace(".", "_")


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


PEFT = lora(".lora_A.weight", ".lora_B.weight")
DOWN = lora(".lora_down.weight", ".lora_up.weight", ".alpha")
T5 = {
    f"lora_te3_encoder_block_23_layer_0_SelfAttention_q.{kind}": (4, 4)
    for kind in ("lora_down.weight", "lora_up.weight")
}
ABSENT = {f"lora_unet_double_blocks_77_img_mlp_0.{kind}": (4, 4) for kind in ("lora_down.weight", "lora_up.weight")}
XLABS = {
    "double_blocks.0.processor.qkv_lora1": QKV, "double_blocks.0.processor.qkv_lora2": ADDED,
    "double_blocks.0.processor.proj_lora1": ("transformer_blocks.0.attn.to_out.0",),
    "double_blocks.0.processor.proj_lora2": ("transformer_blocks.0.attn.to_add_out",),
    "single_blocks.0.processor.qkv_lora": tuple(f"{SINGLE}.attn.to_{name}" for name in "qkv"),
    "single_blocks.0.processor.proj_lora": (f"{SINGLE}.proj_out",),
}  # fmt: skip
NUMBERED = {
    f"{name}.{number}" if len(targets) > 1 else name: (target,)
    for name, targets in FLUX.items() for number, target in enumerate(targets)
}  # fmt: skip
EMBEDDING = {"bundle_emb.cat.clip_l": (2, 32), "bundle_emb.cat.t5xxl": (2, 32)}
AGAIN = {"transformer.x_embedder.lora_A.weight": (4, 16), "transformer.x_embedder.lora_B.weight": (32, 4)}
DIALECTS: dict[str, tuple[str, Dialect]] = {
    "kohya": ("flux", Dialect(kohya(), DOWN, FLUX)),
    "kohya without alpha": ("flux", Dialect(kohya(), lora(".lora_down.weight", ".lora_up.weight"), FLUX)),
    "kohya with T5 that the model lacks": ("flux", Dialect(kohya(), DOWN, FLUX, more=T5, note="16 of 17 layers")),
    "kohya with a layer too many": ("flux", Dialect(kohya(), DOWN, FLUX, more=ABSENT, note="16 of 17 layers")),
    "OneTrainer": ("flux", Dialect(kohya("lora_transformer_"), DOWN, FLUX, ours=True)),
    "OneTrainer, BFL's names": ("flux", Dialect(dotted("transformer."), DOWN, NUMBERED)),
    "an old script of peft": (
        "sdxl", Dialect(dotted("unet.base_model.model."), PEFT, SDXL, ours=True)
    ),
    "ai-toolkit": ("flux", Dialect(dotted("transformer."), PEFT, FLUX, ours=True)),
    "ComfyUI": ("flux", Dialect(dotted("diffusion_model."), PEFT, FLUX)),
    "ComfyUI, lora_down": ("flux", Dialect(dotted("diffusion_model."), DOWN, FLUX)),
    "a checkpoint's prefix": ("flux", Dialect(dotted("model.diffusion_model."), PEFT, FLUX)),
    "BFL's names": ("flux", Dialect(dotted(""), DOWN, FLUX)),
    "diffusers' names": ("flux", Dialect(dotted(""), PEFT, FLUX, ours=True)),
    "peft's wrapper": ("flux", Dialect(dotted("base_model.model."), PEFT, FLUX)),
    "peft's wrapper and the component": ("flux", Dialect(dotted("base_model.model.transformer."), PEFT, FLUX, True)),
    "the name of an adapter": (
        "flux", Dialect(dotted("transformer."), lora(".lora_A.default.weight", ".lora_B.default.weight"), FLUX, True)
    ),
    "another name of an adapter": (
        "flux", Dialect(dotted("transformer."), lora(".lora_A.style_2.weight", ".lora_B.style_2.weight"), FLUX, True)
    ),
    "diffusers' names, lora_down and alpha": ("flux", Dialect(dotted("transformer."), DOWN, FLUX, ours=True)),
    "SimpleTuner": (
        "flux", Dialect(dotted("transformer."), lora(".lora_A.weight", ".lora_B.weight", ".alpha"), FLUX, ours=True)
    ),
    "lora.down": ("flux", Dialect(dotted("transformer."), lora(".lora.down.weight", ".lora.up.weight"), FLUX, True)),
    "XLabs": ("flux", Dialect(dotted(""), lora(".down.weight", ".up.weight"), XLABS)),
    "an embedding beside it": ("flux", Dialect(kohya(), DOWN, FLUX, more=EMBEDDING, note="16 of 17 layers")),
    "the same layer under two names": ("flux", Dialect(kohya(), DOWN, FLUX, more=AGAIN, note="16 of 17 layers")),
    "differences": ("flux", Dialect(dotted("diffusion_model."), difference, FLUX)),
    "LoKr, whole": ("flux", Dialect(kohya("lycoris_"), lokr("whole"), FLUX, ours=True)),
    "LoKr, half": ("flux", Dialect(kohya(), lokr("half"), FLUX)),
    "LoKr, both": ("flux", Dialect(dotted("diffusion_model."), lokr("both"), FLUX)),
    "LoHa": ("flux", Dialect(kohya(), loha, FLUX)),
    "LoHa of a large rank": ("flux", Dialect(kohya(), loha_wide, FLUX)),
    "SDXL, LDM's names": ("sdxl", Dialect(kohya(), DOWN, SDXL)),
    "SDXL, ComfyUI": ("sdxl", Dialect(dotted("diffusion_model."), PEFT, SDXL)),
    "SDXL, peft": ("sdxl", Dialect(dotted("unet."), PEFT, SDXL, ours=True)),
    "SDXL, peft's wrapper": ("sdxl", Dialect(dotted("base_model.model."), PEFT, SDXL, ours=True)),
    "SDXL, LoCon with a middle": ("sdxl", Dialect(kohya(), locon_mid, SDXL)),
    "SDXL, LoKr": ("sdxl", Dialect(kohya(), lokr("half"), SDXL)),
    "SDXL, LoKr, whole": ("sdxl", Dialect(kohya("lycoris_"), lokr("whole"), SDXL, ours=True)),
    "SDXL, LoHa": ("sdxl", Dialect(kohya(), loha, SDXL)),
}  # fmt: skip


def write(path: Path, denoiser: Any, dialect: Dialect) -> dict[str, torch.Tensor]:
    """The file, and what it adds to each of diffusers' layers."""
    generator = torch.Generator().manual_seed(3)
    state: State = {name: noise(generator, *shape) for name, shape in dialect.more.items()}
    added: dict[str, torch.Tensor] = {}
    for original, targets in dialect.layers.items():
        weights = [denoiser.get_submodule(target).weight for target in targets]
        joined = [(original, targets)] if not dialect.ours else [(target, (target,)) for target in targets]
        for name, own in joined:
            rows = [len(weight) for weight, target in zip(weights, targets, strict=True) if target in own]
            shape = (sum(rows), *weights[0].shape[1:])
            parts, change = dialect.make(shape, generator)
            state |= {dialect.name(name) + kind: value for kind, value in parts.items()}
            if original == "final_layer.adaLN_modulation.1" and not dialect.ours:
                change = torch.cat(change.chunk(2)[::-1])
            added |= dict(zip(own, change.split(rows), strict=True))
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return added


def inputs_for(layer: Any) -> torch.Tensor:
    if isinstance(layer, torch.nn.Conv2d):
        return torch.randn(1, layer.in_channels, 6, 6)
    return torch.randn(3, layer.in_features)


def adds(layer: Any, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, torch.nn.Conv2d):
        return functional.conv2d(values, weight, stride=layer.stride, padding=layer.padding)
    return values @ weight.T


@pytest.mark.parametrize("kind", DIALECTS)
def test_a_dialect_has_the_effect_of_the_summed_weights(
    tiny_models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    family, dialect = DIALECTS[kind]
    base = handle_for(tiny_models[{"flux": "tiny-flux-dev", "sdxl": "tiny-sdxl"}[family]])
    loaded = borrow(base)
    before = make_image(base)
    path = tmp_path / "one.safetensors"
    added = write(path, loaded.denoiser, dialect)
    with torch.no_grad():
        borrow(with_loras(base, (path, 0.5, 0.5)))
        (found,) = loaded.loras.loaded.values()
        for target, weight in added.items():
            layer: Any = loaded.denoiser.get_submodule(target)
            values = inputs_for(layer.base_layer)
            expected = layer.base_layer(values) + 0.5 * adds(layer.base_layer, weight, values)
            assert torch.allclose(layer(values), expected, atol=1e-4, rtol=1e-4), target
    assert (found.note is None) == (not dialect.note)
    assert dialect.note in (found.note or "")
    assert torch.equal(make_image(base), before)


def dora_file(path: Path, denoiser: Any, names: str, one_dimension: bool) -> dict[str, torch.Tensor]:
    """A DoRA on the first attention, and the weights that it makes."""
    generator = torch.Generator().manual_seed(4)
    state: State = {}
    made: dict[str, torch.Tensor] = {}
    for target in QKV:
        weight = denoiser.get_submodule(target).weight.detach()
        parts, change = (
            PEFT(tuple(weight.shape), generator) if names != "dora_scale" else DOWN(tuple(weight.shape), generator)
        )
        magnitude = (weight + change).norm(dim=1, keepdim=True) * 1.5
        stem = f"transformer.{target}" if names != "dora_scale" else f"lora_transformer_{target.replace('.', '_')}"
        state |= {stem + kind: value for kind, value in parts.items()}
        state[f"{stem}.{names}"] = magnitude.flatten() if one_dimension else magnitude
        made[target] = (weight + change) * 1.5
    save_file(state, path)
    return made


@pytest.mark.parametrize(
    ("names", "one_dimension"),
    [("dora_scale", False), ("lora_magnitude_vector", True), ("lora_magnitude_vector.default.weight", True)],
)
def test_dora_scales_the_rows(tiny_models: dict[str, Path], tmp_path: Path, names: str, one_dimension: bool) -> None:
    base = handle_for(tiny_models["tiny-flux-dev"])
    loaded = borrow(base)
    path = tmp_path / "dora.safetensors"
    made = dora_file(path, loaded.denoiser, names, one_dimension)
    with torch.no_grad():
        borrow(with_loras(base, (path, 1.0, 1.0)))
        for target, weight in made.items():
            layer: Any = loaded.denoiser.get_submodule(target)
            values = inputs_for(layer.base_layer)
            assert torch.allclose(layer(values), functional.linear(values, weight, layer.base_layer.bias), atol=1e-4)


QWEN = {
    **{f"transformer_blocks.0.attn.{name}": (4, 32) for name in ("to_q", "to_k", "add_q_proj")},
    "transformer_blocks.0.img_mlp.net.2": (4, 32),
}
REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "Qwen-Image": ({f"transformer.{name}.lora_A.weight": shape for name, shape in QWEN.items()}, "made for qwen-image"),
    "Wan": ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (4, 32)}, "made for wan"),
    "SD3": ({"transformer.joint_blocks.0.x_block.attn.qkv.lora_A.weight": (4, 32)}, "made for sd3"),
    "mostly other layers": (
        {f"transformer.transformer_blocks.{n}.attn.to_q.lora_{s}.weight": (4, 32) if s == "A" else (32, 4)
         for n in range(40, 50) for s in "AB"}, "no layer that tiny-flux-dev has, or few",
    ),
    "whole weights": ({"diffusion_model.double_blocks.0.img_mlp.0.weight": (128, 32)}, "a model's own weights"),
    "OFT of another size": ({"lora_unet_double_blocks_0_img_mlp_0.oft_blocks": (4, 8, 8)}, "returns 128.* and 32"),
    "OFT of peft": ({f"transformer.{QKV[0]}.oft_R.weight": (8, 6)}, "OFT of peft without its settings"),
    "OFT of peft, named": ({f"base_model.model.{QKV[0]}.oft_R.default.weight": (8, 6)}, "OFT of peft without"),
    "OFT of a peft before 0.14": ({f"base_model.model.{QKV[0]}.oft_R": (8, 4, 4)}, "OFT of a peft before 0.14"),
    "OFT of an old LyCORIS": ({"lycoris_transformer_blocks_0_attn_to_q.oft_diag": (8, 4, 4)}, "old LyCORIS"),
    "BOFT of odd stages": ({f"base_model.model.{QKV[0]}.boft_R": (3, 2, 4, 4)}, "BOFT in 3 stages with 2 blocks"),
    "BOFT of another size": ({f"base_model.model.{QKV[0]}.boft_R": (1, 4, 4, 4)}, "takes 32 .* the file has 16"),
    "IA3 of another size": ({f"base_model.model.{QKV[0]}.ia3_l": (1, 31)}, "takes 32 .* the file has 31"),
    "IA3 of peft on a convolution": ({f"base_model.model.{QKV[0]}.ia3_l": (1, 32, 1, 1)}, "without its settings"),
    "VeRA": ({f"base_model.model.{QKV[0]}.vera_lambda_b": (32,)}, "VeRA"),
    "GLoRA of a layer's own rank": (
        {f"lycoris_transformer_blocks_0_attn_to_q.{name}.weight": (32, 32) for name in ("a1", "a2", "b1", "b2")},
        "GLoRA of a layer's own rank",
    ),
    "half a GLoRA": ({"lycoris_transformer_blocks_0_attn_to_q.a1.weight": (4, 32)}, "half a GLoRA layer"),
    "a rotation across joined layers": (
        {"lora_unet_double_blocks_0_img_attn_qkv.oft_blocks": (2, 48, 48)}, "a rotation across joined layers",
    ),
    "DoRA along inputs of joined layers": (
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 32),
         "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (96, 4),
         "lora_unet_double_blocks_0_img_attn_qkv.dora_scale": (1, 32)}, "DoRA along the inputs of joined layers",
    ),
    "DoRA of another size": (
        {f"transformer.{QKV[0]}.lora_A.weight": (4, 32), f"transformer.{QKV[0]}.lora_B.weight": (32, 4),
         f"transformer.{QKV[0]}.lora_magnitude_vector": (31,)}, "31 magnitudes for a weight of 32x32",
    ),
    "ranks that differ": (
        {f"transformer.{QKV[0]}.lora_A.weight": (4, 32), f"transformer.{QKV[0]}.lora_B.weight": (32, 8)},
        "factors of the ranks 4 and 8",
    ),
    "factors of one dimension": (
        {f"transformer.{QKV[0]}.lora_A.weight": (32,), f"transformer.{QKV[0]}.lora_B.weight": (32,)},
        r"down of the shape \(32,\)",
    ),
    "factors of rank 0": (
        {f"transformer.{QKV[0]}.lora_A.weight": (0, 32), f"transformer.{QKV[0]}.lora_B.weight": (32, 0)},
        r"down of the shape \(0, 32\)",
    ),
    "several alphas": (
        {f"transformer.{QKV[0]}.lora_A.weight": (4, 32), f"transformer.{QKV[0]}.lora_B.weight": (32, 4),
         f"transformer.{QKV[0]}.alpha": (2,)}, r"alpha of the shape \(2,\)",
    ),
    "a kernel for a linear layer": (
        {f"transformer.{QKV[0]}.lora_A.weight": (4, 32, 3, 3), f"transformer.{QKV[0]}.lora_B.weight": (32, 4, 1, 1)},
        "kernel none",
    ),
    "LoHa of different ranks": (
        {f"transformer.{QKV[0]}.hada_{name}": shape for name, shape in
         (("w1_a", (32, 2)), ("w1_b", (3, 32)), ("w2_a", (32, 2)), ("w2_b", (2, 32)))}, "different ranks",
    ),
    "a difference of one dimension": ({f"transformer.{QKV[0]}.diff": (32,)}, "a change of a norm for another layer"),
    "LoKr of one dimension": (
        {f"transformer.{QKV[0]}.lokr_w1": (4,), f"transformer.{QKV[0]}.lokr_w2": (8, 8)}, r"lokr_w1 of the shape",
    ),
    "only a textual inversion": ({"bundle_emb.cat.string_to_param.*": (1, 32)}, "a textual inversion"),
    "a tensor under two names": (
        {f"transformer.{QKV[0]}.{name}.weight": (4, 32) if "A" in name else (32, 4)
         for name in ("lora_A", "lora_A.style", "lora_B")}, "two tensors called",
    ),
    "half a layer": ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 32)}, "lora_B is missing"),
    "half a LoKr": ({"lycoris_transformer_blocks_0_attn_to_q.lokr_w1": (2, 2)}, "lokr_w2 is missing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_cannot_be_loaded_is_refused_by_its_name(
    tiny_models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from neurolux.errors import InvalidParameter

    shapes, message = REFUSED[kind]
    path = tmp_path / "bad.safetensors"
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path)
    base = handle_for(tiny_models["tiny-flux-dev"])
    before = make_image(base)
    with pytest.raises(InvalidParameter, match=f"bad.safetensors.*{message}"):
        make_image(with_loras(base, (path, 1.0, 1.0)))
    assert torch.equal(make_image(base), before)


def test_text_encoders_of_kohya_are_found(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """``lora_te2_`` of SDXL, with names of CLIP's old module."""
    base = handle_for(tiny_models["tiny-sdxl"])
    pipe: Any = borrow(base).pipe
    state: State = {}
    for number, part in ((1, pipe.text_encoder), (2, pipe.text_encoder_2)):
        name = next(name for name, module in part.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
        weight = part.get_submodule(name).weight
        stem = f"lora_te{number}_text_model_{name.removeprefix('text_model.').replace('.', '_')}"
        parts, _ = DOWN(tuple(weight.shape), torch.Generator().manual_seed(number))
        state |= {stem + kind: value for kind, value in parts.items()}
    for names in (["lora_te1_", "lora_te2_"], ["lora_te2_"]):
        path = tmp_path / f"{len(names)}.safetensors"
        save_file({key: value for key, value in state.items() if key.startswith(tuple(names))}, path)
        before = make_image(base)
        assert not torch.equal(make_image(with_loras(base, (path, 1.0, 1.0))), before)


T5_NAMES: dict[str, Callable[[str], str]] = {
    "kohya": kohya("lora_te3_"), "OneTrainer": kohya("lora_te2_"), "diffusers": dotted("text_encoder_2."),
    "ComfyUI": dotted("text_encoders.t5xxl.transformer."),
}  # fmt: skip


@pytest.mark.parametrize("kind", T5_NAMES)
def test_t5_of_flux_is_changed_too(tiny_models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    base = handle_for(tiny_models["tiny-flux-dev"], precision="fp32")
    before = make_image(base)
    loaded = borrow(base)
    pipe: Any = loaded.pipe
    targets = tuple(f"encoder.block.0.layer.{end}" for end in ("0.SelfAttention.q", "1.DenseReluDense.wo"))
    state, added = {}, {}
    for number, target in enumerate(targets):
        shape = tuple(pipe.text_encoder_2.get_submodule(target).weight.shape)
        parts, added[target] = DOWN(shape, torch.Generator().manual_seed(number))
        state |= {T5_NAMES[kind](target) + end: value for end, value in parts.items()}
    path = tmp_path / "t5.safetensors"
    save_file(state, path)
    made = make_image(with_loras(base, (path, 1.0, 0.5)))
    with torch.no_grad():
        for target in targets:
            layer: Any = pipe.text_encoder_2.get_submodule(target)
            values = inputs_for(layer.base_layer)
            expected = layer.base_layer(values) + 0.5 * values @ added[target].T
            assert torch.allclose(layer(values), expected, atol=1e-4), target
    assert not torch.equal(made, before)
    assert torch.equal(make_image(with_loras(base, (path, 1.0, 0.0))), before)  # no strength in the encoders
    assert torch.equal(make_image(base), before)


def test_a_lora_of_the_plain_model_widens_for_fill(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Turbo-Alpha changes ``x_embedder``: on Fill, the first inputs are those of the plain model."""
    base = handle_for(tiny_models["tiny-flux-fill"])
    loaded = borrow(base)
    layer: Any = loaded.denoiser.get_submodule("x_embedder")
    plain = layer.out_features
    inputs = borrow(handle_for(tiny_models["tiny-flux-dev"])).denoiser.get_submodule("x_embedder").in_features
    parts, change = PEFT((plain, inputs), torch.Generator().manual_seed(6))
    path = tmp_path / "turbo.safetensors"
    save_file({f"transformer.x_embedder{kind}": value for kind, value in parts.items()}, path)
    with torch.no_grad():
        borrow(with_loras(base, (path, 1.0, 1.0)))
        layer = loaded.denoiser.get_submodule("x_embedder")
        values = inputs_for(layer.base_layer)
        expected = layer.base_layer(values) + values[:, :inputs] @ change.T
        assert torch.allclose(layer(values), expected, atol=1e-4)


def test_a_rotation_of_joined_layers_is_cut_where_its_blocks_allow(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Blocks of 4 fit into queries, keys and values of 32 rows each; the two halves of the last norm change places."""
    base = handle_for(tiny_models["tiny-flux-dev"])
    loaded = borrow(base)
    names = {"double_blocks_0_img_attn_qkv": QKV, "final_layer_adaLN_modulation_1": ("norm_out.linear",)}
    state, expected = {}, {}
    for number, (name, targets) in enumerate(names.items()):
        weight = torch.cat([loaded.denoiser.get_submodule(target).weight.detach() for target in targets])
        swapped = torch.cat(weight.chunk(2)[::-1]) if len(targets) == 1 else weight
        blocks = noise(torch.Generator().manual_seed(number), len(weight) // 4, 4, 4)
        skew, unit = blocks - blocks.transpose(1, 2), torch.eye(4)
        turn = torch.block_diag(*((unit + skew) @ torch.linalg.inv(unit - skew)).transpose(1, 2))
        changed = turn @ swapped
        changed = torch.cat(changed.chunk(2)[::-1]) if len(targets) == 1 else changed
        expected |= dict(zip(targets, changed.split(len(weight) // len(targets)), strict=True))
        state[f"lora_unet_{name}.oft_blocks"] = blocks
    path = tmp_path / "oft.safetensors"
    save_file(state, path)
    with torch.no_grad():
        borrow(with_loras(base, (path, 1.0, 1.0)))
        for target, weight in expected.items():
            layer: Any = loaded.denoiser.get_submodule(target)
            values = inputs_for(layer.base_layer)
            assert torch.allclose(layer(values), functional.linear(values, weight, layer.base_layer.bias), atol=1e-4)


@pytest.mark.parametrize(
    ("model", "layer", "state", "message"),
    [
        ("tiny-flux-dev", QKV[0], {".alpha": torch.tensor(float("nan"))}, "not numbers .* in transformer.*alpha"),
        ("tiny-flux-dev", QKV[0], {".lora_A.weight": torch.full((4, 32), float("inf"))}, "not numbers .*lora_A"),
        (
            "tiny-sdxl", "down_blocks.0.resnets.0.conv1",
            {".lora_A.weight": torch.ones(4, 16, 5, 5), ".lora_B.weight": torch.ones(16, 4, 1, 1)}, r"kernel \(3, 3\)",
        ),
        ("tiny-sdxl", "down_blocks.0.resnets.0.conv1", {".diff": torch.ones(16, 16, 1, 1)}, r"a kernel of \(1, 1\)"),
    ],
)  # fmt: skip
def test_values_and_kernels_that_cannot_be_meant_are_refused(
    tiny_models: dict[str, Path], tmp_path: Path, model: str, layer: str, state: State, message: str
) -> None:
    from neurolux.errors import InvalidParameter

    base = handle_for(tiny_models[model])
    prefix = "transformer." if "flux" in model else "unet."
    factors = {".lora_A.weight": torch.ones(4, 32), ".lora_B.weight": torch.ones(32, 4)} if "flux" in model else {}
    path = tmp_path / "odd.safetensors"
    save_file({f"{prefix}{layer}{kind}": value for kind, value in (factors | state).items()}, path)
    with pytest.raises(InvalidParameter, match=rf"odd.safetensors.*{message}"):
        borrow(with_loras(base, (path, 1.0, 1.0)))


def test_a_quantized_lora_is_refused_by_its_type(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from neurolux.errors import InvalidParameter

    path = tmp_path / "int8.safetensors"
    names = ((f"transformer.{QKV[0]}.lora_A.weight", (4, 32)), (f"transformer.{QKV[0]}.lora_B.weight", (32, 4)))
    save_file({name: torch.ones(shape, dtype=torch.int8) for name, shape in names}, path)
    with pytest.raises(InvalidParameter, match="tensors of type int8"):
        borrow(with_loras(handle_for(tiny_models["tiny-flux-dev"]), (path, 1.0, 1.0)))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
def test_small_types_are_read(tiny_models: dict[str, Path], tmp_path: Path, dtype: torch.dtype) -> None:
    base = handle_for(tiny_models["tiny-flux-dev"])
    loaded = borrow(base)
    parts, _ = DOWN((32, 32), torch.Generator().manual_seed(1))
    stored = {f"lora_transformer_{QKV[0].replace('.', '_')}{kind}": value.to(dtype) for kind, value in parts.items()}
    path = tmp_path / "small.safetensors"
    save_file(stored, path)
    down, up, alpha = (value.float() for value in stored.values())
    with torch.no_grad():
        borrow(with_loras(base, (path, 1.0, 1.0)))
        layer: Any = loaded.denoiser.get_submodule(QKV[0])
        values = inputs_for(layer.base_layer)
        expected = layer.base_layer(values) + values @ (up @ down * alpha / RANK).T
        assert torch.allclose(layer(values), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "differences"])
def test_loading_takes_the_memory_of_the_file(tiny_models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """No matrices of the layers' sizes are made of a file's small parts, and they are read one after the other."""
    base = handle_for(tiny_models["tiny-flux-dev"])
    loaded = borrow(base)
    makes = {"LoHa": loha_wide, "LoKr": lokr("half"), "differences": difference}
    path = tmp_path / "some.safetensors"
    write(path, loaded.denoiser, Dialect(kohya("lycoris_"), makes[kind], FLUX, ours=True))
    targets = [target for joined in FLUX.values() for target in joined]
    whole = sum(loaded.denoiser.get_submodule(target).weight.nbytes for target in targets)
    borrow(with_loras(base, (path, 1.0, 1.0)))
    (found,) = loaded.loras.loaded.values()
    assert found.bytes <= max(path.stat().st_size, whole // 3)


def test_one_layer_at_a_time_is_read(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the model's size must not be in memory a second time, in another type."""
    from neurolux.adapters.lora import insertion as lora_insertion

    original, alive, most = lora_insertion.change_of, weakref.WeakSet(), []

    def counted(*given: Any) -> Any:
        change = original(*given)
        weight = change.kind.weight
        if not weight.is_meta:
            alive.add(weight)
            most.append(len(alive))
        return change

    monkeypatch.setattr(lora_insertion, "change_of", counted)
    base = handle_for(tiny_models["tiny-flux-dev"])
    path = tmp_path / "whole.safetensors"
    write(path, borrow(base).denoiser, Dialect(dotted("diffusion_model."), difference, FLUX))
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    borrow(with_loras(base, (path, 1.0, 1.0)))
    assert len(most) == len(FLUX)
    assert max(most) <= 2  # the last one, until the next is there
