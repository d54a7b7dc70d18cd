"""The UNets of Stable Diffusion 1.5 and SDXL, and the common behaviour of their pipelines."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...weights.stamps import Shapes
from ..blocks import BlockLists
from ..spec import Config, Tensors
from .shapes import numbered, sensible_side

HEAD, HEADS = 64, 8
"""The width of an attention head of SDXL, and the number of heads of 1.5; diffusers calls both attention_head_dim."""
TIME_IDS_WIDTH = 256
"""SDXL embeds each of its six size and crop values into a vector of this width."""
SIZED = {"addition_embed_type": "text_time", "addition_time_embed_dim": TIME_IDS_WIDTH}
SD2_TEXT_WIDTH = 1024
"""What the UNet of Stable Diffusion 2 attends to; its tensors have the names of 1.5's."""
FIRST_CROSSED = "transformer_blocks.0.attn2.to_k.weight"
UNET_BLOCKS = BlockLists(("down_blocks", "mid_block", "up_blocks"), levels=True)
BYTES_PER_PIXEL = 79
"""Activations of an SDXL step per pixel and byte of the number format."""
ATTENDING = 1.65
"""Those of a UNet that attends at its first level too, as a factor: the feed-forward layers there take the most."""
LORA_WORDS = (
    "unet.", "lora_unet_", "text_encoder", "lora_te", "diffusion_model.", "base_model.model.", "lycoris_",
    "down_blocks.", "mid_block.", "up_blocks.", "input_blocks.", "output_blocks.",
)  # fmt: skip
"""Prefixes of the tensor names in a LoRA for a UNet."""
LIGHTNING_NAME = re.compile(r"lightning.*?(\d+)[-_ ]?step", re.IGNORECASE)


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of the UNet2DConditionModel of SDXL, or of Stable Diffusion 1.5, which embeds no sizes."""
    levels = numbered(shapes, r"down_blocks\.(\d+)\.")
    channels = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)]
    depths = [
        numbered(shapes, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\.")
        for level in range(levels)
    ]
    crossed = next(name for name in shapes if name.endswith("attn2.to_k.weight"))
    linear = next(name for name in shapes if name.endswith("attentions.0.proj_in.weight"))
    sizes = shapes.get("add_embedding.linear_1.weight")
    return {
        "sample_size": 128 if sizes else 64,
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "block_out_channels": channels,
        "layers_per_block": numbered(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "attention_head_dim": [width // HEAD for width in channels] if sizes else HEADS,
        "cross_attention_dim": shapes[crossed][1],
        "use_linear_projection": len(shapes[linear]) == 2,
        **(SIZED if sizes else {}),
        "projection_class_embeddings_input_dim": sizes[1] if sizes else None,
    }


def empty(config: Config, folder: Path | None) -> Any:
    """The UNet without weights."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder) if folder else config)


def renamed_original(tensors: Tensors) -> Tensors:
    """Rename a UNet from the layout of LDM, with diffusers' converter."""
    from diffusers.loaders.single_file_utils import LDM_UNET_KEY, convert_ldm_unet_checkpoint

    blocks = {name.split(".")[1] for name in tensors if name.startswith("input_blocks.")}
    levels = 1 + sum(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name) is not None for name in tensors)
    config = {"layers_per_block": len(blocks) // levels - 1, "addition_embed_type": "text_time"}
    if "label_emb.0.0.weight" not in tensors:
        del config["addition_embed_type"]
    return convert_ldm_unet_checkpoint({LDM_UNET_KEY + name: value for name, value in tensors.items()}, config)


V_NAMES = {"v", "v_prediction", "v-prediction", "v-pred", "vpred"}
EPSILON_NAMES = {"epsilon", "eps", "noise"}


def trained_for(names: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The scheduler's settings for what a checkpoint says of its training.

    Trainers mark it by empty tensors, which ComfyUI reads too: ``v_pred``, ``ztsnr`` (noise up to no signal at all),
    ``edm_mean`` and ``edm_vpred.*``; Stability's ModelSpec and kohya's scripts by metadata.
    """
    if any(name.rpartition(".")[2].startswith("edm_") or name.startswith("edm_vpred.") for name in names):
        raise ValueError("it was trained with EDM's preconditioning")
    stated = metadata.get("modelspec.prediction_type", "").lower()
    if stated and stated not in V_NAMES | EPSILON_NAMES:
        raise ValueError(f"it was trained to predict {stated!r}")
    kohya = metadata.get("ss_v_parameterization", "").lower() == "true"
    found: dict[str, Any] = {}
    if "v_pred" in names or stated in V_NAMES or kohya:
        found["prediction_type"] = "v_prediction"
    if "ztsnr" in names or metadata.get("ss_zero_terminal_snr", "").lower() == "true":
        # it starts at the last timestep, which "leading" leaves out
        found |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return found


def sample_values(width: int, height: int) -> float:
    """Bytes of activations of a step, per byte of the number format."""
    return width * height * BYTES_PER_PIXEL


def attending_values(width: int, height: int) -> float:
    """The same of a UNet that attends at its first level too, at an eighth of the image's side: 1.5's, whose images
    are seen by text there, and any with motion modules, whose frames see each other."""
    return sample_values(width, height) * ATTENDING


def step_operations(parameters: int, width: int, height: int) -> float:
    """Operations of a step: 6.76 TFLOP for SDXL at 1024x1024 (FlopCounterMode), proportional to the pixels."""
    return parameters * 0.0025 * width * height


def running_steps(steps: int, strength: float) -> int:
    """How many of ``steps`` run. Stable Diffusion's pipelines round down."""
    return min(int(steps * strength), steps)


def lora_widths(header: Shapes) -> set[int] | None:
    """The widths of the text embeddings that a UNet's LoRA attends to; None for another kind of file."""
    if not any(name.startswith(LORA_WORDS) for name in header) or any("double_blocks" in name for name in header):
        return None
    return {
        shape[1]
        for name, shape in header.items()
        if "attn2" in name
        and "to_k" in name
        and len(shape) > 1
        and any(word in name for word in ("lora_A", "down.weight", "hada_w1_b"))
    }


LDM_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
LDM_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.2": "conv_out",
}  # fmt: skip
BLOCK_LAYER = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)|(?:(mid)_block)\.(\w+)\.(\d+)\.(.+)")


def original_names(unet: Any) -> dict[str, tuple[str, ...]]:
    """LDM's name of each layer of ``unet``, which LoRAs of ComfyUI and old trainers use."""
    layers = unet.config.layers_per_block
    found = {ours: (theirs,) for ours, theirs in LDM_OUTSIDE.items()}
    for name, _ in unet.named_modules():
        match = BLOCK_LAYER.fullmatch(name)
        if match is not None and "base_layer" not in name and "lora_" not in name:
            found[original_name(match, layers, unet)] = (name,)
    for index in range(len(unet.down_blocks)):
        sampler = f"down_blocks.{index}.downsamplers.0.conv"
        found[f"input_blocks.{1 + index * (layers + 1) + layers}.0.op"] = (sampler,)
    return found


def original_name(match: re.Match[str], layers: int, unet: Any) -> str:
    """LDM's name of a layer in a block of ``layers`` resnets."""
    if match[6]:
        resnet = match[7] == "resnets"
        rest = LDM_RESNET.get(match[9], match[9]) if resnet else match[9]
        return f"middle_block.{2 * int(match[8]) if resnet else 1}.{rest}"
    down, level, group, number, rest = match[1] == "down", int(match[2]), match[3], int(match[4]), match[5]
    first = (1 if down else 0) + level * (layers + 1)
    blocks = "input_blocks" if down else "output_blocks"
    if group == "upsamplers":
        attends = hasattr(unet.up_blocks[level], "attentions")
        return f"{blocks}.{first + layers}.{2 if attends else 1}.{rest}"
    rest = LDM_RESNET.get(rest, rest) if group == "resnets" else rest
    return f"{blocks}.{first + number}.{0 if group == 'resnets' else 1}.{rest}"


def side_of(read: Callable[[str], dict[str, Any]]) -> int:
    """The side in pixels of the training images of the UNet in a diffusers folder."""
    sample_size = read("unet/config.json").get("sample_size")
    scale = 2 ** (len(read("vae/config.json")["block_out_channels"]) - 1)
    return sensible_side(sample_size * scale if isinstance(sample_size, int) else None)


def lightning_steps(name: str) -> int | None:
    """The number of steps in the name of a Lightning file; None for any other name."""
    match = LIGHTNING_NAME.search(name)
    return int(match[1]) if match else None


def kohya_lora(layers: Tensors) -> Tensors:
    """A LoRA's tensors, named by diffusers (``unet.X.lora_A.weight``), under kohya's names, each layer with its alpha.

    ComfyUI's Load LoRA and the Automatic1111 family know only these for a UNet. Alpha is the rank: a factor of 1.
    """
    found: Tensors = {}
    for name, tensor in layers.items():
        layer, _, matrix = name.removeprefix("unet.").partition(".lora_")
        kohya = f"lora_unet_{layer.replace('.', '_')}"
        if matrix == "A.weight":
            found[f"{kohya}.lora_down.weight"] = tensor
            found[f"{kohya}.alpha"] = tensor.new_tensor(float(tensor.shape[0]))
        else:
            found[f"{kohya}.lora_up.weight"] = tensor
    return found
