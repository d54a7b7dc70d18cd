"""Weights from files into a component, one tensor at a time, in the type and the place that the plan says.

The module is made without memory and gets its weights one by one, each read from the disk, cast or quantized, and let
go before the next: the peak is the component as it will lie in memory, and one tensor. diffusers' and transformers'
own ``from_pretrained`` would hold it in the type of the files first.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights

from ..errors import WeightsMissing
from ..planning.records import ComponentPlan
from ..weights.dtypes import DTYPES
from ..weights.file_kinds import NAMES
from ..weights.files import LoadMeter
from ..weights.key_maps import SCALES
from ..weights.quantize import storable_layers, store_gguf, store_weight, stored_type, unscaled
from .components import ComponentFiles

SHOWN = 4
_log = logging.getLogger(__name__)


def load_component(files: ComponentFiles, plan: ComponentPlan, meter: LoadMeter, device: torch.device) -> Any:
    """The component in ``files``, on the CPU, its weights as ``plan`` says.

    ``device`` is where quantizing is computed. Raises WeightsMissing for files that are damaged or do not fit.
    """
    tensors = files.tensors()
    if plan.storage == "gguf" and files.part == "flux-transformer":
        return load_gguf(files, tensors, DTYPES[plan.compute], meter)
    with init_empty_weights():
        module = empty_module(files)
    fill(module, files, tensors, plan, meter, device)
    return module.eval().requires_grad_(False)


def empty_module(files: ComponentFiles) -> torch.nn.Module:
    """The component's class with its configuration; call it where weights get no memory."""
    import diffusers
    import transformers

    if files.part in ("t5", "clip-l", "clip-g"):
        projected = files.part == "clip-g"
        if files.part == "t5":
            config_class, model_class = transformers.T5Config, transformers.T5EncoderModel
        else:
            config_class = transformers.CLIPTextConfig
            model_class = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
        folder = files.config_folder
        config = config_class.from_pretrained(folder) if folder else config_class(**files.config)
        return cast(Any, model_class)(config)
    classes: dict[str, Any] = {
        "flux-transformer": diffusers.FluxTransformer2DModel,
        "sdxl-unet": diffusers.UNet2DConditionModel,
        "sd15-unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
    }
    model_class = classes[files.part]
    return model_class.from_config(
        model_class.load_config(files.config_folder) if files.config_folder else files.config
    )


def fill(
    module: torch.nn.Module,
    files: ComponentFiles,
    tensors: dict[str, torch.Tensor],
    plan: ComponentPlan,
    meter: LoadMeter,
    device: torch.device,
) -> None:
    """Give ``module`` its weights out of ``tensors``, which are taken from it."""
    compute = DTYPES[plan.compute]
    storage = stored_type(plan.storage, plan.compute)
    coded = plan.storage == "gguf"
    layers = {f"{name}.weight": layer for name, layer in storable_layers(module)} if storage or coded else {}
    wanted = module.state_dict()
    tensors = matching_names(wanted, tensors)
    missing = [name for name in wanted if name not in tensors and not tied(module, name, tensors)]
    if missing:
        raise WeightsMissing(
            f"{described(files)} lacks {listed(missing)}; fetch the file again, or choose another {NAMES[files.part]}"
        )
    for name, target in wanted.items():
        if name not in tensors:
            continue
        source = tensors.pop(name)
        scale = tensors.pop(f"{name.removesuffix('weight')}{SCALES[0]}", None)
        if decoded_shape(source) != target.shape:
            raise WeightsMissing(
                f"{described(files)} does not fit: {name} is {tuple(decoded_shape(source))} and should be "
                f"{tuple(target.shape)}; choose another {NAMES[files.part]}"
            )
        count = source.nbytes
        owner, _, attribute = name.rpartition(".")
        holder = module.get_submodule(owner)
        if coded and name in layers and hasattr(source, "quant_type"):
            store_gguf(layers[name], keep(source, source, plan), compute)
            meter.add(count)
            continue
        source = dequantized(source)
        if name in layers and not coded:
            assert storage is not None
            store_weight(layers[name], source.to(device), storage, compute, moved(scale, device))
            for tensor in ("stored", "scale"):
                if (value := getattr(holder, tensor)) is not None:
                    value.data = keep(value.data.cpu(), source, plan)
        else:
            value = keep((source if scale is None else unscaled(source, scale)).to(compute), source, plan)
            if attribute in holder._buffers:
                holder._buffers[attribute] = value
            else:
                holder._parameters[attribute] = torch.nn.Parameter(value, requires_grad=False)
        meter.add(count)
    retie(module)
    if tensors:
        _log.info("NeuroLux: %s: not used: %s", described(files), listed(list(tensors)))


def keep(value: torch.Tensor, source: torch.Tensor, plan: ComponentPlan) -> torch.Tensor:
    """``value``, made of what a file has, where it is to stay: in RAM of its own.

    For weights that RAM is too small for (``disk``), one that is in its file as it shall be stays there, mapped.
    """
    if not is_part(value, source):
        return value.contiguous()
    return value if plan.placement == "disk" and value.is_contiguous() else copied(value)


def copied(value: torch.Tensor) -> torch.Tensor:
    """``value`` in memory of its own."""
    return value.clone(memory_format=torch.contiguous_format)


def is_part(value: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether ``value`` still lies in the memory of ``source``, so that nothing was changed."""
    return value.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()


def matching_names(wanted: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``tensors`` with or without the ``text_model.`` that CLIP's names begin with (transformers drops it from 5.6)."""
    prefix = "text_model."
    if any(name in wanted for name in tensors):
        has = {name.startswith(prefix) for name in wanted}
        if has != {False} or not any(name.startswith(prefix) for name in tensors):
            return tensors
    found: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        bare = name.removeprefix(prefix)
        found[bare if bare in wanted else prefix + bare if prefix + bare in wanted else name] = value
    return found


def tied(module: torch.nn.Module, name: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the weight ``name`` is one that another in ``tensors`` is shared with."""
    return name in tied_weights(module) and tied_weights(module)[name] in tensors


def tied_weights(module: torch.nn.Module) -> dict[str, str]:
    """Weights that are shared, by the name of the other: T5's embedding, which its encoder has too."""
    names = {"encoder.embed_tokens.weight": "shared.weight"}
    own = dict(module.named_parameters(remove_duplicate=False))
    return {name: other for name, other in names.items() if name in own and other in own}


def retie(module: torch.nn.Module) -> None:
    """Share again what is shared: weights that were given one by one are two."""
    for name, other in tied_weights(module).items():
        module.get_submodule(name.rpartition(".")[0]).weight = module.get_submodule(other.rpartition(".")[0]).weight


def moved(value: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """``value`` on ``device``."""
    return None if value is None else value.to(device)


def decoded_shape(value: torch.Tensor) -> torch.Size:
    """The shape of what a tensor stands for."""
    return torch.Size(getattr(value, "quant_shape", value.shape))


def dequantized(value: torch.Tensor) -> torch.Tensor:
    """A GGUF tensor as numbers; others as they are."""
    if not hasattr(value, "quant_type"):
        return value
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    return dequantize_gguf_tensor(value)


def load_gguf(
    files: ComponentFiles, tensors: dict[str, torch.Tensor], compute: torch.dtype, meter: LoadMeter
) -> torch.nn.Module:
    """A FLUX transformer with its weights as the GGUF has them, by diffusers: a layer decodes its own when called."""
    from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig

    copied: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        copied[name] = value.clone()
        meter.add(value.nbytes)
    with tempfile.TemporaryDirectory() as folder:  # from_single_file takes a configuration by its folder only
        (Path(folder) / "config.json").write_text(json.dumps(files.config), encoding="utf-8")
        return FluxTransformer2DModel.from_single_file(
            copied, config=folder, quantization_config=GGUFQuantizationConfig(compute_dtype=compute), dtype=compute
        ).requires_grad_(False)


def described(files: ComponentFiles) -> str:
    """The file for a reader."""
    return str(files.files[0]) if len(files.files) == 1 else str(files.files[0].parent)


def listed(names: list[str]) -> str:
    """The first few of ``names``."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
