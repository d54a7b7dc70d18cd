"""The components of a model and the files that each is in: what is loaded, and how large it is, told from headers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..catalog.models import Model, SingleFilesSource
from ..errors import WeightsMissing
from ..families.architectures import config_of
from ..planning.records import ComponentShape, StorageType
from ..weights.diffusers_folder import WEIGHTS
from ..weights.dtypes import TYPE_NAMES
from ..weights.file_kinds import NAMES, Part, Place, identify
from ..weights.files import open_files, outlines
from ..weights.headers import read_header
from ..weights.key_maps import SCALES, renamed
from ..weights.sources import ResolvedFiles

DENOISERS: dict[str, str] = {"flux": "transformer", "sdxl": "unet", "sd15": "unet"}
PARTS: dict[str, dict[str, Part]] = {
    "flux": {"text_encoder": "clip-l", "text_encoder_2": "t5", "transformer": "flux-transformer", "vae": "vae"},
    "sdxl": {"text_encoder": "clip-l", "text_encoder_2": "clip-g", "unet": "sdxl-unet", "vae": "vae"},
    "sd15": {"text_encoder": "clip-l", "unet": "sd15-unet", "vae": "vae"},
}
"""What each component of a pipeline is."""
BLOCK = re.compile(
    r"(?:single_)?transformer_blocks\.\d+|encoder\.block\.\d+"
    r"|(?:(?:down|up)_blocks\.\d+|mid_block)"
    r"\.(?:(?:resnets|downsamplers|upsamplers)\.\d+|attentions\.\d+\.transformer_blocks\.\d+)"
)
"""What can be streamed: the start of its weights' names. A UNet's levels are too large for it."""
STREAMED_PARTS: tuple[Part, ...] = ("flux-transformer", "sdxl-unet", "sd15-unet", "t5")


@dataclass(frozen=True)
class ComponentFiles:
    """One component on the disk."""

    name: str
    part: Part
    family: str
    files: tuple[Path, ...]
    place: Place | None = None
    """Where in a single file it is; None for a diffusers folder, whose names need no change."""
    config_folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights under their names in diffusers or transformers, mapped from the disk."""
        return self.named(open_files(self.files))

    def outline(self) -> dict[str, torch.Tensor]:
        """As ``tensors``, without data."""
        found: dict[str, torch.Tensor] = {}
        for path in self.files:
            found.update(outlines(path))
        return self.named(found)

    def named(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``tensors`` under the names that the component's class has for them."""
        return tensors if self.place is None else renamed(self.part, self.place, tensors)

    @property
    def bytes(self) -> int:
        """Bytes of its weights in the files."""
        if self.place is None:
            return sum(path.stat().st_size for path in self.files)
        return sum(
            info.bytes
            for path in self.files
            for name, info in read_header(path).tensors.items()
            if name.startswith(self.place.prefix)
        )


def component_files(model: Model, variant: int | None, files: ResolvedFiles) -> dict[str, ComponentFiles]:
    """The components of ``model`` by name. Raises WeightsMissing for files that do not fit together."""
    if files.single is not None:
        return single_components(model.family, files.single)
    assert files.pipeline is not None
    return folder_components(model, files, files.pipeline)


def folder_components(model: Model, files: ResolvedFiles, folder: Path) -> dict[str, ComponentFiles]:
    """The components of a diffusers folder, and of what replaces some of them."""
    found: dict[str, ComponentFiles] = {}
    for name, part in PARTS[model.family].items():
        own = folder / name
        if name == "unet" and files.checkpoint is not None:
            weights: tuple[Path, ...] = (files.checkpoint,)
        elif name == "vae" and files.vae is not None:
            own = files.vae
            weights = folder_weights(own, None)
        else:
            weights = folder_weights(own, getattr(model.source, "variant", None))
        if not (own / "config.json").is_file() or not weights:
            raise WeightsMissing(f"model {model.name!r}: {own} has no weights or no config.json; fetch its files again")
        found[name] = ComponentFiles(name, part, model.family, weights, config_folder=own)
    return found


def folder_weights(folder: Path, variant: str | None) -> tuple[Path, ...]:
    """The weight files that diffusers and transformers would read in ``folder``: those of ``variant`` first."""
    middles = (f".{variant}", "") if variant else ("",)
    for middle in middles:
        for suffix in WEIGHTS:
            indexes = sorted(folder.glob(f"*{suffix}.index{middle}.json"))
            if indexes:
                shards = set(json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"].values())
                return tuple(folder / shard for shard in sorted(shards))
            for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
                path = folder / f"{stem}{middle}{suffix}"
                if path.is_file():
                    return (path,)
    return tuple(sorted(path for path in folder.glob("*") if path.suffix in WEIGHTS and path.is_file()))


def single_components(family: str, source: SingleFilesSource) -> dict[str, ComponentFiles]:
    """The components that single files hold, and their configurations, told from their shapes."""
    found: dict[str, ComponentFiles] = {}
    for name, part in PARTS[family].items():
        if name not in source.components:
            continue
        path = source.components[name]
        component = ComponentFiles(name, part, family, (path,), place=place_of(part, name, path))
        shapes = {key: tuple(value.shape) for key, value in component.outline().items()}
        try:
            config = config_of(part, shapes, family, projected=name == "text_encoder_2")
        except (KeyError, IndexError, StopIteration, ValueError) as error:
            raise WeightsMissing(
                f"{path} is no complete {NAMES[part]}: it lacks {error}; fetch the file again, or choose another"
            ) from error
        found[name] = replace(component, config=config)
    check_fit(family, found)
    return found


def check_single_files(family: str, source: SingleFilesSource) -> None:
    """Raise WeightsMissing unless the files (all, or those chosen so far) are what they shall be and fit together."""
    single_components(family, source)


def place_of(part: Part, name: str, path: Path) -> Place:
    """Where in ``path`` the component is. Raises WeightsMissing, which says what the file is instead."""
    found = identify(read_header(path))
    place = found.parts.get(part)
    if place is None:
        raise WeightsMissing(f"{path.name} is a {found.kind}; {name} needs a {NAMES[part]}")
    return place


def check_fit(family: str, components: Mapping[str, ComponentFiles]) -> None:
    """Raise WeightsMissing unless the components, as far as they are there, have been made for each other."""
    configs = {name: part.config for name, part in components.items()}
    denoiser = DENOISERS[family]
    if denoiser not in configs:
        return
    main = configs[denoiser]
    own = components[denoiser].files[0].name
    if main["in_channels"] != main["out_channels"]:
        raise WeightsMissing(
            f"{own} takes {main['in_channels']} channels and gives {main['out_channels']}: it is for filling, "
            "redrawing or control, and draws from an image; text to image needs a plain model"
        )
    for name, has, needs, what in measures(family, configs, main):
        if has != needs:
            raise WeightsMissing(
                f"{components[name].files[0].name} does not belong to {own}: it has {has} {what}, and {needs} are "
                f"needed; choose the {NAMES[components[name].part]} of a {family.upper()} model"
            )


def measures(
    family: str, configs: Mapping[str, Mapping[str, Any]], main: Mapping[str, Any]
) -> Iterator[tuple[str, int, int, str]]:
    """What must agree: component, what it has, what the denoiser needs, and of what."""
    if family == "flux":
        if "text_encoder" in configs:
            yield "text_encoder", configs["text_encoder"]["hidden_size"], main["pooled_projection_dim"], "features"
        if "text_encoder_2" in configs:
            yield "text_encoder_2", configs["text_encoder_2"]["d_model"], main["joint_attention_dim"], "features"
        if "vae" in configs:
            yield "vae", configs["vae"]["latent_channels"], main["out_channels"] // 4, "latent channels"
        return
    if "text_encoder" in configs and "text_encoder_2" in configs:
        width = configs["text_encoder"]["hidden_size"] + configs["text_encoder_2"]["hidden_size"]
        yield "text_encoder_2", width, main["cross_attention_dim"], "features together with the first encoder"
    if "vae" in configs:
        yield "vae", configs["vae"]["latent_channels"], main["out_channels"], "latent channels"


def shapes_of(model: Model, variant: int | None, files: ResolvedFiles) -> dict[str, ComponentShape]:
    """How large the components of ``model`` are, from the headers of its files; no weights are read."""
    return {name: shape_of(component) for name, component in component_files(model, variant, files).items()}


def shape_of(component: ComponentFiles) -> ComponentShape:
    """Parameters, those of each block in order of use, and the type in the files."""
    outline = {name: value for name, value in component.outline().items() if not name.endswith(SCALES)}
    blocks: dict[str, int] = {}
    if component.part in STREAMED_PARTS:
        for name, value in outline.items():
            if block := BLOCK.match(name):
                blocks[block[0]] = blocks.get(block[0], 0) + value.numel()
    gguf = any(read_header(path).gguf for path in component.files if path.suffix == ".gguf")
    return ComponentShape(
        parameters=sum(value.numel() for value in outline.values()),
        blocks=tuple(blocks[name] for name in sorted(blocks, key=order_of_use)),
        stored="gguf" if gguf else stored_type(outline),
        stored_bytes=component.bytes if gguf else None,
    )


def vae_must_upcast(files: ResolvedFiles) -> bool:
    """Whether the VAE's config asks for fp32 (``force_upcast``; true where it does not say, as in diffusers)."""
    folder = files.vae or (files.pipeline / "vae" if files.pipeline is not None else None)
    if folder is None:
        return True
    return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("force_upcast", True))


def stored_type(outline: Mapping[str, torch.Tensor]) -> StorageType | None:
    """The type that most of the bytes are in, as a plan calls it; None for one that it does not know."""
    totals: dict[StorageType | None, int] = {}
    for value in outline.values():
        name = TYPE_NAMES.get(value.dtype)
        totals[name] = totals.get(name, 0) + math.prod(value.shape) * value.element_size()
    return max(totals, key=lambda name: totals[name], default=None)


def order_of_use(block: str) -> tuple[Any, ...]:
    """Sorts the names of blocks as they run: in a UNet each resnet before its attention, samplers last."""
    lists = ("encoder", "transformer_blocks", "single_transformer_blocks", "down_blocks", "mid_block", "up_blocks")
    parts = block.split(".")
    numbers = [int(part) for part in parts if part.isdigit()]
    level, inside = (0, numbers) if parts[0] == "mid_block" else (numbers[0], numbers[1:])
    sampler = "downsamplers" in parts or "upsamplers" in parts
    return lists.index(parts[0]), level, sampler, inside[:1], "attentions" in parts, inside[1:]
