"""Fills a component with weights from files, one tensor at a time, in the type and the place that the plan says.

The module is created without memory. Each weight is read from disk, cast or quantized, and its source is released
before the next one. So the peak is the finished component and one tensor. ``from_pretrained`` of diffusers and
transformers would first hold the whole component in the type of the files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights

from ..errors import WeightsMissing
from ..families.spec import Part
from ..memory.backends.choice import backend
from ..memory.backends.host import same_memory
from ..planning.costs import SPILL_BYTES
from ..planning.records import ComponentPlan
from ..weights.dtypes import DTYPES
from ..weights.files import LoadMeter
from ..weights.key_maps import ROTATION, SCALES
from ..weights.quantized.decoding import rotated_back
from ..weights.quantized.storage import from_nf4, storable_layers, store_gguf, store_weight, stored_type, unscaled
from .components import ComponentFiles

LISTED = 4
_log = logging.getLogger(__name__)


def load_component(files: ComponentFiles, plan: ComponentPlan, meter: LoadMeter, device: torch.device) -> Any:
    """The component in ``files``, on the CPU, with its weights in the types of ``plan``.

    ``device`` is where weights are quantized. Raises WeightsMissing for files that are damaged or do not fit.
    """
    tensors = files.tensors()
    if plan.storage == "gguf" and files.part.load_gguf is not None:
        copied: dict[str, torch.Tensor] = {}
        for name, value in tensors.items():
            copied[name] = value.clone()
            meter.add(value.nbytes)
        return files.part.load_gguf(copied, files.config, DTYPES[plan.compute]).requires_grad_(False)
    with init_empty_weights():
        module = files.part.empty(files.config, files.config_folder)
    fill(module, files, tensors, plan, meter, device)
    return module.eval().requires_grad_(False)


def fill(
    module: torch.nn.Module,
    files: ComponentFiles,
    tensors: dict[str, torch.Tensor],
    plan: ComponentPlan,
    meter: LoadMeter,
    device: torch.device,
) -> None:
    """Move the weights from ``tensors`` into ``module``. Removes from ``tensors`` whatever it uses."""
    part, compute = files.part, DTYPES[plan.compute]
    storage = stored_type(plan.storage, plan.compute)
    coded = plan.storage == "gguf"
    storable = storable_layers(module, part.blocks.prefixes) if storage or coded else ()
    layers = {f"{name}.weight": layer for name, layer in storable}
    expected = module.state_dict(keep_vars=True)
    tensors = matching_names(part.optional_prefix, expected, tensors)
    missing = [name for name in expected if name not in tensors and not tied(part, module, name, tensors)]
    if missing:
        raise WeightsMissing(
            f"{file_text(files)} lacks {listing(missing)}; fetch the file again, or choose another {part.title}"
        )
    converted = Converted(plan)
    for name, target in expected.items():
        if name not in tensors:
            continue
        source = tensors.pop(name)
        scale = tensors.pop(f"{name.removesuffix('weight')}{SCALES[0]}", None)
        rotation = tensors.pop(f"{name.removesuffix('weight')}{ROTATION}", None)
        shape = decoded_shape(source, scale)
        if not fits(shape, target.shape):
            raise WeightsMissing(
                f"{file_text(files)} does not fit: {name} is {tuple(shape)} and should be "
                f"{tuple(target.shape)}; choose another {part.title}"
            )
        count = source.nbytes
        packed = source.dtype == torch.uint8 and scale is not None
        if packed and (name not in layers or storage != "nf4"):
            assert scale is not None
            source, scale = from_nf4(source.flatten(), scale.flatten(), target.shape, torch.float32), None
        elif rotation is not None:
            source, scale = rotated_back(unscaled(source, scale), int(rotation)), None
        owner, _, attribute = name.rpartition(".")
        holder = module.get_submodule(owner)
        if coded and name in layers and hasattr(source, "quant_type"):
            store_gguf(layers[name], keep(source, source, plan), compute)
            meter.add(count)
            continue
        source = dequantized(source)
        if len(source.shape) < len(target.shape):
            source = source.reshape(target.shape)
        if name in layers and not coded:
            assert storage is not None
            store_weight(layers[name], source.to(device), storage, compute, moved(scale, device))
            for tensor in ("stored", "scale"):
                if (value := getattr(holder, tensor)) is not None:
                    value.data = keep(value.data.cpu(), source, plan)
                    converted.add(value, source)
        else:
            plain = source if scale is None else unscaled(source, scale)
            exact = not set(owner.split(".")).isdisjoint(part.full_precision)
            wanted = torch.float32 if exact else compute
            value = keep(plain.to(wanted) if target.is_floating_point() else plain, source, plan)
            if attribute in holder._buffers:
                holder._buffers[attribute] = value
            else:
                value = holder._parameters[attribute] = torch.nn.Parameter(value, requires_grad=False)
            converted.add(value, source)
        meter.add(count)
    converted.write()
    retie(part, module)
    if tensors:
        _log.info("NeuroLux: %s: not used: %s", file_text(files), listing(list(tensors)))


class Converted:
    """Weights that changed their type and that RAM shall not keep: written to files in portions as they are made."""

    def __init__(self, plan: ComponentPlan) -> None:
        self._wanted = plan.placement == "disk"
        self._waiting: list[torch.Tensor] = []
        self._bytes = 0

    def add(self, tensor: torch.Tensor, source: torch.Tensor) -> None:
        """``tensor``, made from ``source``, may be in a file from now on. Raises WeightsMissing for a full disk."""
        if not self._wanted or same_memory(tensor, source):
            return
        self._waiting.append(tensor)
        self._bytes += tensor.nbytes
        if self._bytes >= SPILL_BYTES // 2:  # beside the portion, its copy in pages that are not written yet
            self.write()

    def write(self) -> None:
        """Write what is waiting."""
        if self._waiting:
            places = backend().spill([tensor.data for tensor in self._waiting])
            for tensor, place in zip(self._waiting, places, strict=True):
                tensor.data = place
        self._waiting.clear()
        self._bytes = 0


def keep(value: torch.Tensor, source: torch.Tensor, plan: ComponentPlan) -> torch.Tensor:
    """``value``, which was made from ``source``, in its final place: in RAM, in memory of its own.

    With placement ``disk``, a weight that did not change stays mapped from its file.
    """
    if not same_memory(value, source):
        return value.contiguous()
    return value if plan.placement == "disk" and value.is_contiguous() else copied(value)


def copied(value: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of ``value``."""
    return value.clone(memory_format=torch.contiguous_format)


def matching_names(
    prefix: str, expected: Mapping[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """``tensors`` with ``prefix`` added or removed to match the ``expected`` names (transformers dropped CLIP's)."""
    if not prefix:
        return tensors
    if any(name in expected for name in tensors):
        has = {name.startswith(prefix) for name in expected}
        if has != {False} or not any(name.startswith(prefix) for name in tensors):
            return tensors
    found: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        bare = name.removeprefix(prefix)
        found[bare if bare in expected else prefix + bare if prefix + bare in expected else name] = value
    return found


def tied(part: Part, module: torch.nn.Module, name: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the weight ``name`` is tied to another one that is in ``tensors``."""
    shared = tied_weights(part, module)
    return name in shared and shared[name] in tensors


def tied_weights(part: Part, module: torch.nn.Module) -> dict[str, str]:
    """Tied weights: each name with the weight that it is tied to (T5's embedding, which its encoder shares)."""
    own = dict(module.named_parameters(remove_duplicate=False))
    return {name: other for name, other in part.tied.items() if name in own and other in own}


def retie(part: Part, module: torch.nn.Module) -> None:
    """Tie the tied weights again: filling one by one has separated them."""
    for name, other in tied_weights(part, module).items():
        module.get_submodule(name.rpartition(".")[0]).weight = module.get_submodule(other.rpartition(".")[0]).weight


def moved(value: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """``value`` on ``device``."""
    return None if value is None else value.to(device)


def decoded_shape(value: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Size:
    """The shape of a tensor after decoding. NF4 has two values in a byte."""
    if value.dtype == torch.uint8 and scale is not None:
        return torch.Size((value.shape[0], value.shape[1] * 2))
    return torch.Size(getattr(value, "quant_shape", value.shape))


def fits(shape: torch.Size, wanted: torch.Size) -> bool:
    """Whether a tensor of a file has the values of one of the class. Some files hold a table as one row."""
    return matrix(shape) == matrix(wanted) or (len(shape) == 1 and shape.numel() == wanted.numel())


def matrix(shape: torch.Size) -> tuple[int, ...]:
    """``shape`` with two axes at least: some files hold a token (width) that the class has as (1, width)."""
    return (1,) * (2 - len(shape)) + tuple(shape)


def dequantized(value: torch.Tensor) -> torch.Tensor:
    """A GGUF tensor decoded; any other tensor unchanged."""
    if not hasattr(value, "quant_type"):
        return value
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    return dequantize_gguf_tensor(value)


def file_text(files: ComponentFiles) -> str:
    """The path to name in messages: the file, or the folder of several files."""
    return str(files.files[0]) if len(files.files) == 1 else str(files.files[0].parent)


def listing(names: list[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
