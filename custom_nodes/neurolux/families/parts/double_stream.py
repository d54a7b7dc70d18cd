"""What FLUX.1 and the transformers made from it share: double and single blocks, packed latents, their authors' names.

In a double block the image and the text have weights of their own and attend together; in a single block they are one
sequence. A latent token is 2x2 latent pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...weights.stamps import Shapes
from ..blocks import BlockLists
from ..spec import Config, Tensors
from .shapes import numbered

if TYPE_CHECKING:
    import torch


BLOCKS = BlockLists(("transformer_blocks", "single_transformer_blocks"))
ORIGINAL_KEY_NORM = "double_blocks.0.img_attn.norm.key_norm.{}"
"""``scale``, or ``weight`` in files of some converters."""
ORIGINAL_SINGLE = "single_blocks.0.linear1.weight"
DIFFUSERS_KEY_NORM = "transformer_blocks.0.attn.norm_added_k.weight"
DIFFUSERS_SINGLE = "single_transformer_blocks.0.proj_mlp.weight"
INPUTS = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
"""The authors' names of the layers outside of the blocks, with diffusers' names."""
PROJECTIONS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
)  # fmt: skip
"""Of the attention, by the ends of diffusers' names: what a LoRA is trained on."""
Layers = Mapping[str, list[str]]
"""The authors' names of the layers in a block, with those of diffusers' layers that each joins."""
DOUBLE = {
    "img_mod.lin": ["norm1.linear"],
    "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.norm.query_norm": ["attn.norm_q"],
    "img_attn.norm.key_norm": ["attn.norm_k"],
    "txt_attn.norm.query_norm": ["attn.norm_added_q"],
    "txt_attn.norm.key_norm": ["attn.norm_added_k"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
    "norm.query_norm": ["attn.norm_q"],
    "norm.key_norm": ["attn.norm_k"],
}
BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def config(shapes: Shapes) -> dict[str, Any]:
    """What FluxTransformer2DModel and its relatives have in common in their configurations. Of a head's rotary axes, an
    eighth encodes the image's index, and the rest is split between row and column."""
    width = shapes["x_embedder.weight"][0]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    axis = head // 8
    return {
        "patch_size": 1,
        "in_channels": shapes["x_embedder.weight"][1],
        "out_channels": shapes["proj_out.weight"][0],
        "num_layers": numbered(shapes, r"transformer_blocks\.(\d+)\."),
        "num_single_layers": numbered(shapes, r"single_transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "axes_dims_rope": (axis, (head - axis) // 2, (head - axis) // 2),
    }


def inner_width(config: Config) -> int | None:
    """The width of the blocks of a transformer or a ControlNet; None where the configuration does not say it."""
    heads, width = config.get("num_attention_heads"), config.get("attention_head_dim")
    return heads * width if heads and width else None


def renamed_original(
    tensors: Tensors, outside: Callable[[str], str | None], double: Layers = DOUBLE, single: Layers = SINGLE
) -> Tensors:
    """Rename the authors' tensors to diffusers' names. Fused projections are split into views, so nothing is copied.

    ``outside``: (the authors' name of a layer outside of the blocks) -> diffusers' name; None for one without.
    ``double``, ``single``: the layers of a block.

    diffusers' own function assumes a width of 3072 and copies all weights, 24 GB, before the first can be used.
    """
    import torch

    width = tensors["img_in.weight"].shape[0]
    found: Tensors = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        kind = "weight" if kind == "scale" else kind  # of a norm
        block = BLOCK.fullmatch(stem)
        if block is None:
            target = outside(stem)
            if target == "norm_out.linear" and value.numel() > 1:
                value = torch.cat(list(reversed(value.chunk(2, dim=0))), dim=0)  # diffusers has scale before shift
            if target is not None:
                found[f"{target}.{kind}"] = value
            continue
        doubled, number, layer = block[1] == "double", block[2], block[3]
        targets = (double if doubled else single).get(layer)
        if targets is None:
            continue
        group = "transformer_blocks" if doubled else "single_transformer_blocks"
        for target, piece in zip(targets, pieces(value, len(targets), width), strict=True):
            found[f"{group}.{number}.{target}.{kind}"] = piece
    return found


def pieces(value: torch.Tensor, count: int, width: int) -> list[torch.Tensor]:
    """Split the rows of a fused projection: three parts of ``width``, then the rest. Every part shares a scale."""
    if count == 1:
        return [value]
    if value.numel() == 1:
        return [value] * count
    sizes = [width] * 3
    return list(value.split(sizes if count == 3 else [*sizes, value.shape[0] - 3 * width], dim=0))


def lora_in_original_names(layers: Tensors, double: Layers, single: Layers) -> Tensors:
    """A LoRA of layers in the blocks, by diffusers' names, under the authors' names.

    What is joined there gets all the downward matrices below each other, and an upward matrix that is zero where one
    layer would read another's. It changes the weight by the same values.
    """
    import torch

    names = [
        re.fullmatch(r"transformer\.((?:single_)?transformer_blocks\.\d+)\.(.+)\.lora_A\.weight", name)
        for name in layers
    ]
    found: Tensors = {}
    for start in dict.fromkeys(name[1] for name in names if name):
        group, number = start.split(".")
        original, parts = ("single_blocks", single) if group.startswith("single_") else ("double_blocks", double)
        for stem, targets in parts.items():
            whole = [f"transformer.{start}.{target}.lora_" for target in targets]
            if f"{whole[0]}A.weight" not in layers:
                continue
            into = f"diffusion_model.{original}.{number}.{stem}.lora_"
            found[f"{into}A.weight"] = torch.cat([layers[f"{name}A.weight"] for name in whole])
            found[f"{into}B.weight"] = torch.block_diag(*(layers[f"{name}B.weight"] for name in whole))
    return found


def original_names(
    transformer: Any, outside: Mapping[str, str], double: Layers = DOUBLE, single: Layers = SINGLE
) -> dict[str, tuple[str, ...]]:
    """The authors' name of each layer, with diffusers' layers that it joins; ``outside`` of the blocks as given."""
    found: dict[str, tuple[str, ...]] = {stem: (target,) for stem, target in outside.items()}
    for groups, blocks, layers in (
        ("double_blocks", "transformer_blocks", double),
        ("single_blocks", "single_transformer_blocks", single),
    ):
        for number in range(len(getattr(transformer, blocks))):
            for stem, targets in layers.items():
                found[f"{groups}.{number}.{stem}"] = tuple(f"{blocks}.{number}.{target}" for target in targets)
    joined = single["linear1"][:3] if len(single["linear1"]) > 1 else []  # XLabs leaves the rest of linear1 alone
    for number in range(len(transformer.single_transformer_blocks) if joined else 0):
        found[f"single_blocks.{number}.qkv"] = tuple(f"single_transformer_blocks.{number}.{one}" for one in joined)
    return found


def keeps_its_shape() -> type:
    """Mixin that stops a LoRA from changing the shape of the shared transformer.

    diffusers' loader compares shapes with the weights. Stored weights (weights/quantized/storage.py) are not in the
    state dict under that name, and building each would take long. ``refuse_widening`` rejects LoRAs that are too wide,
    and peft rejects all other misfits.
    """

    class KeepsItsShape:
        @classmethod
        def _maybe_expand_transformer_param_shape_or_error_(cls, *_: object, **__: object) -> bool:
            return False

        @classmethod
        def _maybe_expand_lora_state_dict(cls, transformer: Any, lora_state_dict: dict[str, Any]) -> dict[str, Any]:
            return lora_state_dict

    return KeepsItsShape


def mask_alone() -> type:
    """Mixin for pipelines that inpaint by blending: prepares the mask without encoding the masked image.

    diffusers encodes the masked image at the very end and never uses the result.
    """
    import torch

    class MaskAlone:
        vae_scale_factor: int
        _pack_latents: Callable[..., torch.Tensor]

        def prepare_mask_latents(
            self,
            mask: torch.Tensor,
            masked_image: torch.Tensor,
            batch_size: int,
            num_channels_latents: int,
            num_images_per_prompt: int,
            height: int,
            width: int,
            dtype: torch.dtype,
            device: torch.device,
            generator: torch.Generator,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """The same mask as diffusers', packed like the latents: ``mask`` (1, 1, H, W) sampled per latent pixel."""
            cells = self.vae_scale_factor * 2
            height, width = 2 * (height // cells), 2 * (width // cells)
            mask = torch.nn.functional.interpolate(mask, size=(height, width)).to(device=device, dtype=dtype)
            batch = batch_size * num_images_per_prompt
            mask = mask.repeat(batch // len(mask), num_channels_latents, 1, 1)
            packed = self._pack_latents(mask, batch, num_channels_latents, height, width)
            return packed, packed

    return MaskAlone


def unpack(pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Unpack tokens of 2x2 latent pixels to (1, C, h, w)."""
    return pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)


def running_steps(steps: int, strength: float) -> int:
    """How many of ``steps`` run. FLUX's pipelines round up."""
    return steps - int(max(steps - min(steps * strength, steps), 0))
