"""Maps the components of a model to their files, and reads their sizes and configurations from the headers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..catalog.models import Model, SingleFilesSource
from ..errors import WeightsMissing
from ..families.files.identify import read_kind
from ..families.registry import family_of
from ..families.spec import Component, Config, FamilySpec, Part
from ..planning.records import ComponentShape, StorageType
from ..weights.diffusers_folder import WEIGHTS
from ..weights.download.sources import ResolvedFiles
from ..weights.dtypes import TYPE_NAMES
from ..weights.file_kinds import Place
from ..weights.files import open_files, outlines
from ..weights.headers import is_gguf, is_safetensors, read_header
from ..weights.key_maps import ROTATION, SCALES, own_tensors
from ..weights.quantized.notes import unreadable_format
from ..weights.stamps import read_config
from ..weights.user_files import read_json


@dataclass(frozen=True)
class ComponentFiles:
    """The files of one component."""

    name: str
    component: Component
    files: tuple[Path, ...]
    place: Place | None = None
    """Where it is in a single file; None for a diffusers folder, whose tensor names need no change."""
    config_folder: Path | None = None
    config: Config = field(default_factory=dict)

    @property
    def part(self) -> Part:
        """What kind of component it is."""
        return self.component.part

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights under their names in diffusers or transformers, mapped from disk."""
        return self.named(open_files(self.files))

    def outline(self) -> dict[str, torch.Tensor]:
        """Like ``tensors``, but on the meta device, without data."""
        found: dict[str, torch.Tensor] = {}
        for path in self.files:
            found.update(outlines(path))
        return self.named(found)

    def named(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``tensors`` under the names of the component's class."""
        place = self.place or Place("", "diffusers")
        own = own_tensors(place, tensors)
        own = {name: value for name, value in own.items() if not name.startswith(self.part.unread)}
        rename = self.part.renames.get(place.layout)
        if rename is None:
            return own
        found = rename(own)
        if sum(map(is_beside, found)) < sum(map(is_beside, own)):  # without its scale a weight is nonsense
            raise WeightsMissing(
                f"{self.files[0].name} is a {self.part.title} with quantized layers that the pack does not know; "
                "use a version in bf16, fp16 or fp8, or a GGUF"
            )
        return found

    @property
    def bytes(self) -> int:
        """Bytes of its weights in the files."""
        if self.place is None:
            return sum(path.stat().st_size for path in self.files)
        prefix = self.place.prefix
        return sum(
            info.bytes
            for path in self.files
            for name, info in read_header(path).tensors.items()
            if name.startswith(prefix) and not name.removeprefix(prefix).startswith(self.part.unread)
        )


def component_files(model: Model, variant: int | None, files: ResolvedFiles) -> dict[str, ComponentFiles]:
    """The components of ``model`` by name. Raises WeightsMissing for files that do not fit together."""
    if files.single is not None:
        return single_components(model.family, files.single)
    assert files.pipeline is not None
    return folder_components(model, files, files.pipeline)


def folder_components(model: Model, files: ResolvedFiles, folder: Path) -> dict[str, ComponentFiles]:
    """The components of a diffusers folder and of the files that replace some of them."""
    found: dict[str, ComponentFiles] = {}
    family = family_of(model.family)
    for name, component in family.components.items():
        own = folder / name
        if name == family.denoiser and files.checkpoint is not None:
            weights: tuple[Path, ...] = (files.checkpoint,)
        elif name == "vae" and files.vae is not None:
            own = files.vae
            weights = folder_weights(own, None)
        else:
            weights = folder_weights(own, getattr(model.source, "variant", None))
        if not (own / "config.json").is_file() or not weights:
            raise WeightsMissing(f"model {model.name!r}: {own} has no weights or no config.json; fetch its files again")
        for path in weights:
            if is_safetensors(path) and path.is_file():
                check_format(path)
        found[name] = ComponentFiles(name, component, weights, config_folder=own)
    return found


def folder_weights(folder: Path, variant: str | None) -> tuple[Path, ...]:
    """The weight files that diffusers and transformers would read in ``folder``: those of ``variant`` first."""
    middles = (f".{variant}", "") if variant else ("",)
    for middle in middles:
        for suffix in WEIGHTS:
            indexes = sorted(folder.glob(f"*{suffix}.index{middle}.json"))
            if indexes:
                return tuple(folder / shard for shard in shards_of(indexes[0]))
            for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
                path = folder / f"{stem}{middle}{suffix}"
                if path.is_file():
                    return (path,)
    return tuple(sorted(path for path in folder.glob("*") if path.suffix in WEIGHTS and path.is_file()))


def shards_of(index: Path) -> list[str]:
    """The files that an index names. Raises WeightsMissing if it is damaged."""
    try:
        found = sorted({str(shard) for shard in read_json(index)["weight_map"].values()})
        if (outside := next((one for one in found if not one or Path(one).name != one), None)) is not None:
            raise ValueError(f"it names {outside!r}, which is no file beside it")
        return found
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsMissing(f"{index} is damaged ({error}); fetch it again") from error


def single_components(family: str, source: SingleFilesSource) -> dict[str, ComponentFiles]:
    """The components in single files, with configurations that follow from the shapes. Raises WeightsMissing."""
    found: dict[str, ComponentFiles] = {}
    for name, component in family_of(family).components.items():
        if name not in source.components:
            continue
        path = source.components[name]
        part = component.part
        files = ComponentFiles(name, component, (path,), place=place_of(part, name, path))
        try:
            shapes = {key: tuple(value.shape) for key, value in files.outline().items()}
            config = component.config_of(shapes)
        except WeightsMissing:
            raise
        except Exception as error:  # its tensors may have any names and shapes, and must not take others down
            lacks = f"it lacks {error}" if isinstance(error, KeyError) else repr(error)
            raise WeightsMissing(
                f"{path} is no {part.title} in a form that the pack knows ({lacks}); choose another file"
            ) from error
        found[name] = replace(files, config=config)
    check_fit(family_of(family), found)
    denoiser = found.get(family_of(family).denoiser)
    if denoiser is not None:
        file_schedule(family_of(family), denoiser)
    return found


def file_schedule(family: FamilySpec, denoiser: ComponentFiles) -> Config:
    """The scheduler's settings that a denoiser's single file states. Raises WeightsMissing if none samples it."""
    path = denoiser.files[0]
    header = read_header(path)
    try:
        return family.trained_for(header.tensors, header.metadata)
    except ValueError as error:
        raise WeightsMissing(
            f"{path.name} is a {family.title} model that the pack cannot sample: {error}; choose one that predicts "
            "noise (epsilon) or velocity (v-prediction)"
        ) from error


def check_single_files(family: str, source: SingleFilesSource) -> None:
    """Raise WeightsMissing unless each file (of all, or of those chosen so far) holds its component and they fit."""
    single_components(family, source)


def place_of(part: Part, name: str, path: Path) -> Place:
    """Where the component is in ``path``. Raises WeightsMissing, which says what the file is instead."""
    found = read_kind(path)
    place = found.parts.get(part.name)
    if place is None:
        raise WeightsMissing(f"{path.name} is a {found.kind}; {name} needs a {part.title}")
    check_format(path, place.prefix)
    return place


def check_format(path: Path, prefix: str = "") -> None:
    """Raise WeightsMissing, which names the format, for quantized weights that the pack cannot read."""
    if not is_safetensors(path):
        return
    problem = unreadable_format(read_header(path), prefix)
    if problem is not None:
        raise WeightsMissing(
            f"{path.name} has {problem}, a quantized format that the pack cannot read; use a version in bf16, fp16, "
            "fp8, plain int8 or nf4, or a GGUF"
        )


def is_beside(name: str) -> bool:
    """Whether a tensor says how to decode a weight, and is none itself."""
    return name.endswith((*SCALES, f".{ROTATION}"))


def check_fit(family: FamilySpec, components: Mapping[str, ComponentFiles]) -> None:
    """Raise WeightsMissing unless the components, as far as present, were made for each other."""
    configs = {name: files.config for name, files in components.items()}
    if family.denoiser not in configs:
        return
    main = configs[family.denoiser]
    own = components[family.denoiser].files[0].name
    fills = family.single_files is not None and family.single_files.fills(main)
    returned = main.get("out_channels", main["in_channels"]) * main.get("patch_size", 1) ** 2
    if main["in_channels"] != returned and not fills:
        raise WeightsMissing(
            f"{own} takes {main['in_channels']} channels and returns {returned}: it is an "
            "inpainting or control model, which needs an input image; text to image needs a plain model"
        )
    for name, has, needs, what in family.misfits(configs):
        if has != needs:
            raise WeightsMissing(
                f"{components[name].files[0].name} does not belong to {own}: it has {has} {what}, and {needs} are "
                f"needed; choose the {components[name].part.title} of a {family.title} model"
            )


def shapes_of(model: Model, variant: int | None, files: ResolvedFiles) -> dict[str, ComponentShape]:
    """The sizes of the components of ``model``, from the headers of its files. Reads no weights."""
    return {name: shape_of(component) for name, component in component_files(model, variant, files).items()}


def shape_of(component: ComponentFiles) -> ComponentShape:
    """The size of one component: parameters in total and per block, in order of use, and the type in the files."""
    outline = {name: value for name, value in component.outline().items() if not is_beside(name)}
    blocks: dict[str, int] = {}
    lists = component.part.blocks
    inside = outside = 0
    for name, value in outline.items():
        if (block := lists.block_of(name)) is not None:
            blocks[block] = blocks.get(block, 0) + value.numel()
            inside = max(inside, value.numel())
        else:
            outside = max(outside, value.numel())
    gguf = any(read_header(path).gguf for path in component.files if is_gguf(path))
    return ComponentShape(
        parameters=sum(value.numel() for value in outline.values()),
        blocks=tuple(blocks[name] for name in sorted(blocks, key=lists.order)),
        stored="gguf" if gguf else stored_type(outline),
        stored_bytes=component.bytes if gguf else None,
        largest_outside=outside if blocks else None,
        largest_inside=inside,
    )


def vae_must_upcast(files: ResolvedFiles) -> bool:
    """Whether the VAE's config requires fp32 (``force_upcast``; true by default, as in diffusers)."""
    folder = files.vae or (files.pipeline / "vae" if files.pipeline is not None else None)
    if folder is None:
        return True
    return bool(read_config(folder.name, folder).get("force_upcast", True))


def stored_type(outline: Mapping[str, torch.Tensor]) -> StorageType | None:
    """The type of most of the bytes, by its name in plans; None for an unknown type."""
    totals: dict[StorageType | None, int] = {}
    for value in outline.values():
        name = TYPE_NAMES.get(value.dtype)
        totals[name] = totals.get(name, 0) + math.prod(value.shape) * value.element_size()
    return max(totals, key=lambda name: totals[name], default=None)
