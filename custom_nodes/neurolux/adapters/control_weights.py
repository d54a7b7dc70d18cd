"""A ControlNet's files into its module: a diffusers folder, or one file whose configuration follows from its shapes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidParameter
from ..loading.loaded import LoadedPipeline
from ..loading.modules import load_module
from ..weights.stamps import CONFIG_FILE, FileStamp, Shapes, read_config, read_shapes


def build_controlnet(pipeline: LoadedPipeline, file: FileStamp, dtype: torch.dtype) -> Any:
    """The module, in RAM and in ``dtype``. Raises InvalidParameter for a ControlNet of another model."""
    module = load_module(
        f"ControlNet {file.name}",
        f"fetch it again, or use its diffusers folder, with {CONFIG_FILE}",
        lambda: read_module(pipeline, file, dtype),
    )
    check_fit(pipeline, file, module)
    with torch.inference_mode(False), torch.no_grad():
        for weight in module.parameters():  # at any address in a file; for some, products round otherwise
            weight.data = weight.data.clone()
    module.register_forward_pre_hook(cast_condition, with_kwargs=True)
    return module.eval().requires_grad_(False)


def read_module(pipeline: LoadedPipeline, file: FileStamp, dtype: torch.dtype) -> Any:
    """The module as its own class."""
    import diffusers

    if file.path.is_dir():
        class_name = read_config(file.name, file.path)["_class_name"]
        return getattr(diffusers, class_name).from_pretrained(file.path, dtype=dtype, local_files_only=True)
    header = read_shapes(file.path)
    if pipeline.model.family == "flux":
        return from_state(diffusers.FluxControlNetModel, flux_config(pipeline, header), file, dtype)
    unet: Any = pipeline.denoiser
    if "control_add_embedding.linear_1.weight" in header:
        return from_state(diffusers.ControlNetUnionModel, union_config(unet.config, header), file, dtype)
    config = sdxl_config(unet.config, header)
    if "controlnet_cond_embedding.conv_in.weight" in header:
        return from_state(diffusers.ControlNetModel, config, file, dtype)
    with tempfile.TemporaryDirectory() as folder:  # where from_single_file would else ask the Hub
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        return diffusers.ControlNetModel.from_single_file(str(file.path), config=folder, dtype=dtype)


def from_state(model_class: Any, config: Mapping[str, Any], file: FileStamp, dtype: torch.dtype) -> Any:
    """One file with diffusers' own names into a module of ``config``."""
    from accelerate import init_empty_weights
    from safetensors.torch import load_file

    with init_empty_weights():
        module = model_class.from_config(dict(config))
    state = {key: weight.to(dtype) for key, weight in load_file(file.path).items()}
    module.load_state_dict(state, assign=True)
    return module


def flux_config(pipeline: LoadedPipeline, header: Shapes) -> dict[str, Any]:
    """FluxControlNetModel's configuration: widths and depths from the shapes, rotary axes from the model itself."""
    transformer: Any = pipeline.denoiser
    inner, channels = header["x_embedder.weight"]
    head = header["transformer_blocks.0.attn.norm_q.weight"][0]
    modes = header.get("controlnet_mode_embedder.weight")
    hint = header.get("input_hint_block.conv_out.weight")
    return {
        "patch_size": 2 if hint else 1,
        "in_channels": channels,
        "num_layers": depth(header, "transformer_blocks."),
        "num_single_layers": depth(header, "single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "joint_attention_dim": header["context_embedder.weight"][1],
        "pooled_projection_dim": header["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in header,
        "axes_dims_rope": list(transformer.config.axes_dims_rope),
        "num_mode": modes[0] if modes else None,
        "conditioning_embedding_channels": hint[0] if hint else None,
    }


UNET_KEYS = (
    "in_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "only_cross_attention", "block_out_channels",
    "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps",
    "cross_attention_dim", "transformer_layers_per_block", "encoder_hid_dim", "encoder_hid_dim_type",
    "attention_head_dim", "num_attention_heads", "use_linear_projection", "class_embed_type", "addition_embed_type",
    "addition_time_embed_dim", "num_class_embeds", "upcast_attention", "resnet_time_scale_shift",
    "projection_class_embeddings_input_dim", "mid_block_type",
)  # fmt: skip
"""What a ControlNet of an SDXL model takes over from its UNet (``ControlNetModel.from_unet``)."""


def sdxl_config(unet: Any, header: Shapes) -> dict[str, Any]:
    """ControlNetModel's configuration: the UNet's, with the depth of each block as the file has it."""
    config = {key: unet[key] for key in UNET_KEYS if key in unet}
    embedding = "controlnet_cond_embedding."
    if f"{embedding}conv_in.weight" in header:
        pairs = depth(header, f"{embedding}blocks.") // 2
        channels = [header[f"{embedding}conv_in.weight"][0]]
        channels += [header[f"{embedding}blocks.{2 * index + 1}.weight"][0] for index in range(pairs)]
        config["conditioning_embedding_out_channels"] = channels
        config["conditioning_channels"] = header[f"{embedding}conv_in.weight"][1]
        blocks = range(depth(header, "down_blocks."))
        attentions = [depth(header, f"down_blocks.{index}.attentions.") for index in blocks]
        config["down_block_types"] = ["CrossAttnDownBlock2D" if count else "DownBlock2D" for count in attentions]
        config["transformer_layers_per_block"] = [
            depth(header, f"down_blocks.{index}.attentions.0.transformer_blocks.") or 1 for index in blocks
        ]
        if not depth(header, "mid_block.attentions."):
            config["mid_block_type"] = "UNetMidBlock2D"
    return config


def union_config(unet: Any, header: Shapes) -> dict[str, Any]:
    """ControlNetUnionModel's configuration."""
    config = sdxl_config(unet, header)
    for key in ("mid_block_type", "mid_block_scale_factor", "only_cross_attention", "downsample_padding"):
        config.pop(key, None)
    kinds, width = header["task_embedding"]
    return {
        **config,
        "num_control_type": kinds,
        "num_trans_channel": width,
        "num_trans_head": 8,
        "num_trans_layer": depth(header, "transformer_layes."),
        "num_proj_channel": header["spatial_ch_projs.weight"][0],
    }


def depth(header: Shapes, prefix: str) -> int:
    """How many numbered children ``prefix`` has."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in header if key.startswith(prefix)}
    return len([number for number in numbers if number.isdecimal()])


def check_fit(pipeline: LoadedPipeline, file: FileStamp, module: Any) -> None:
    """Raise InvalidParameter where the ControlNet's layers cannot meet the model's."""
    denoiser: Any = pipeline.denoiser
    if pipeline.model.family == "flux":
        ours = (denoiser.inner_dim, denoiser.config.in_channels, denoiser.config.joint_attention_dim)
        theirs = (module.inner_dim, module.config.in_channels, module.config.joint_attention_dim)
    else:
        names = ("block_out_channels", "in_channels", "cross_attention_dim")
        ours, theirs = (
            tuple(tuple(value) if isinstance(value := config[name], (list, tuple)) else value for name in names)
            for config in (denoiser.config, module.config)
        )
    if ours != theirs:
        raise InvalidParameter(
            "controlnet",
            f"ControlNet {file.name} has layers of widths {theirs} and {pipeline.model.name} of {ours}; "
            f"choose a ControlNet that was trained on this {pipeline.model.family} model",
        )


def cast_condition(module: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The control image in the ControlNet's number format; FLUX's pipeline leaves it in the VAE's own."""
    condition: Any = keywords.get("controlnet_cond")
    if isinstance(condition, torch.Tensor):
        keywords["controlnet_cond"] = condition.to(module.dtype)
    return arguments, keywords
