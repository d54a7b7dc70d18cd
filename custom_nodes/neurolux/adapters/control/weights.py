"""A ControlNet's files into its module: a diffusers folder, or one file whose configuration follows from its shapes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import InvalidParameter
from ...loading.loaded import LoadedPipeline
from ...loading.modules import load_module
from ...weights.stamps import CONFIG_FILE, FileStamp, read_config, read_shapes
from .choice import controls_of


def build_controlnet(pipeline: LoadedPipeline, file: FileStamp, dtype: torch.dtype) -> Any:
    """The module, in RAM and in ``dtype``. Raises InvalidParameter for a ControlNet of another model."""
    module = load_module(
        f"ControlNet {file.name}",
        f"use its diffusers folder, with {CONFIG_FILE}, or choose another",
        lambda: read_module(pipeline, file, dtype),
    )
    check_fit(pipeline, file, module)
    controls_of(pipeline.model.family).prepare(module)
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
    controls = controls_of(pipeline.model.family)
    class_name, config = controls.architecture(pipeline.denoiser, header)
    if not controls.single_file(header):
        return from_state(getattr(diffusers, class_name), config, file, dtype)
    with tempfile.TemporaryDirectory() as folder:  # where from_single_file would else ask the Hub
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        # for diffusers, only a file called .safetensors is one
        path = file.path
        if path.suffix != ".safetensors":
            path = Path(folder) / "weights.safetensors"
            path.symlink_to(file.path.resolve())
        return getattr(diffusers, class_name).from_single_file(str(path), config=folder, dtype=dtype)


def from_state(model_class: Any, config: Mapping[str, Any], file: FileStamp, dtype: torch.dtype) -> Any:
    """One file with diffusers' own names into a module of ``config``."""
    from accelerate import init_empty_weights
    from safetensors.torch import load_file

    with init_empty_weights():
        module = model_class.from_config(dict(config))
    state = {key: weight.to(dtype) for key, weight in load_file(file.path).items()}
    module.load_state_dict(state, assign=True)
    return module


def check_fit(pipeline: LoadedPipeline, file: FileStamp, module: Any) -> None:
    """Raise InvalidParameter where the ControlNet's layers cannot meet the model's."""
    widths = controls_of(pipeline.model.family).widths
    ours, theirs = widths(pipeline.denoiser), widths(module)
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
