"""A motion adapter's files into its module: a diffusers folder, or one file under diffusers' names or its authors'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...errors import WeightsMissing
from ...families.parts.shapes import children
from ...loading.modules import load_module
from ...weights.stamps import CONFIG_FILE, FileStamp, Shapes, read_config, read_shapes

ORIGINAL_MARK = ".temporal_transformer."
"""In the tensor names of AnimateDiff's own files (guoyww/AnimateDiff)."""
POSITIONS = ("pos_embed.pe", "pos_encoder.pe")
"""Computed, and left out of some files. Their length is the number of frames."""
WRAPPER = "module."
"""Before all names in files that were saved from torch's parallel training."""
HEADS, GROUPS = 8, 32
"""Of every adapter that has been published; the shapes in a single file do not tell."""
MAX_FRAMES = 32


def build_motion_adapter(file: FileStamp, dtype: torch.dtype) -> Any:
    """The ``MotionAdapter`` in RAM and in ``dtype``. Raises WeightsMissing for a file that is damaged or none."""
    advice = "fetch it again, or choose another"
    module = load_module(f"motion adapter {file.name}", advice, lambda: read_module(file, dtype))
    return module.eval().requires_grad_(False)


def read_module(file: FileStamp, dtype: torch.dtype) -> Any:
    """The module as diffusers' own class."""
    from accelerate import init_empty_weights
    from diffusers import MotionAdapter
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
    from safetensors.torch import load_file

    path = weights_path(file)
    header = read_shapes(path)
    header = {key.removeprefix(WRAPPER): shape for key, shape in header.items()}
    state = {key.removeprefix(WRAPPER): value for key, value in load_file(path).items()}
    if any(ORIGINAL_MARK in key for key in header):
        state = convert_animatediff_checkpoint_to_diffusers(state)
    config = read_config(file.name, file.path) if file.path.is_dir() else config_of(renamed(header))
    with init_empty_weights():
        module: Any = MotionAdapter.from_config(config)
    # a file's weights are at any address, and for some addresses matrix products round otherwise
    state = {key: value.to(dtype, copy=True) for key, value in state.items()}
    missing, unknown = module.load_state_dict(state, strict=False, assign=True)
    wrong = [key for key in missing if not key.endswith(POSITIONS)] + list(unknown)
    if wrong:
        raise ValueError(f"its tensors do not fit: {', '.join(wrong[:3])}")
    for name, buffer in module.named_buffers():
        owner, _, attribute = name.rpartition(".")
        module.get_submodule(owner)._buffers[attribute] = buffer.to(dtype)
    return module


def weights_path(file: FileStamp) -> Any:
    """The one file that holds the weights."""
    if not file.path.is_dir():
        return file.path
    names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
    found = next((file.path / name for name in names if (file.path / name).is_file()), None)
    if found is None:
        raise WeightsMissing(f"motion adapter {file.name} has no {names[0]} beside its {CONFIG_FILE}; fetch it again")
    return found


def renamed(header: Shapes) -> Shapes:
    """``header`` under diffusers' names."""
    return {key.replace(ORIGINAL_MARK, "."): shape for key, shape in header.items()}


def config_of(header: Shapes) -> Mapping[str, Any]:
    """MotionAdapter's configuration, from the shapes in a single file. Raises KeyError for another file."""
    levels = children(header, "down_blocks.")
    positions = next((shape for key, shape in header.items() if key.endswith(POSITIONS)), None)
    return {
        "block_out_channels": [
            header[f"down_blocks.{level}.motion_modules.0.norm.weight"][0] for level in range(levels)
        ],
        "motion_layers_per_block": children(header, "down_blocks.0.motion_modules."),
        "motion_num_attention_heads": HEADS,
        "motion_norm_num_groups": GROUPS,
        "motion_max_seq_length": positions[1] if positions else MAX_FRAMES,
        "use_motion_mid_block": any(key.startswith("mid_block.") for key in header),
    }
