"""Models in single files: which of the files in ComfyUI's own folders make a model together.

A file is what its tensors say (weights/file_kinds.py). Its name only decides between several that fit:
``models.toml`` has the names under which a model's files are published. Weights are not read here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from zlib import crc32

from ..catalog.limits import (
    Defaults,
    GuidanceLimit,
    Limits,
    StepLimit,
)
from ..catalog.models import (
    Catalog,
    Model,
    SchedulerChoice,
    SingleFilesSource,
)
from ..errors import WeightsMissing
from ..loading.components import DENOISERS, PARTS, check_single_files, single_components
from ..weights.file_kinds import NAMES, FileKind, identify
from ..weights.headers import READABLE, read_header
from .folder_models import size_limits

AUTO = "auto"
FOLDERS: dict[str, str] = {
    "transformer": "diffusion_models",
    "unet": "diffusion_models",
    "text_encoder": "text_encoders",
    "text_encoder_2": "text_encoders",
    "vae": "vae",
    "checkpoint": "checkpoints",
    "lora": "loras",
}
"""ComfyUI's folder for each component's files."""
PREFERRED: dict[str, dict[str, tuple[str, ...]]] = {
    "flux": {
        "text_encoder": ("clip_l*",),
        "text_encoder_2": ("t5xxl_fp16*", "t5xxl*", "t5-v1_1-xxl*", "t5*"),
        "vae": ("ae.*", "flux*vae*"),
    },
    "sdxl": {"checkpoint": ("sd_xl_base*", "sdxl*base*"), "vae": ("sdxl*vae*",)},
    "sd15": {},
}
"""Names to take first where several files fit."""
EXAMPLES: dict[str, dict[str, str]] = {
    "flux": {
        "transformer": "flux1-schnell.safetensors",
        "text_encoder": "clip_l.safetensors",
        "text_encoder_2": "t5xxl_fp16.safetensors",
        "vae": "ae.safetensors",
    },
    "sdxl": {
        "unet": "sdxl_lightning_4step_unet.safetensors",
        "text_encoder": "sd_xl_base_1.0.safetensors",
        "text_encoder_2": "sd_xl_base_1.0.safetensors",
        "vae": "sd_xl_base_1.0.safetensors",
    },
    "sd15": {},
}
"""Files that are known to fit, for who looks for one."""
STEPS = re.compile(r"lightning.*?(\d+)[-_ ]?step", re.IGNORECASE)
_log = logging.getLogger(__name__)
_reported: set[Path] = set()
_found_for: dict[str, Any] = {}


@dataclass(frozen=True)
class Shelf:
    """The weight files below ComfyUI's model folders."""

    roots: Mapping[str, tuple[Path, ...]]
    """Folders by ComfyUI's name for their kind."""
    _files: dict[str, dict[str, Path]] = field(default_factory=dict)

    def files(self, folder: str) -> dict[str, Path]:
        """The files of a kind of folder, by their names relative to it."""
        if folder not in self._files:
            found: dict[str, Path] = {}
            for root in self.roots.get(folder, ()):
                for path in sorted(root.rglob("*")) if root.is_dir() else ():
                    if path.suffix in READABLE and path.is_file():
                        found.setdefault(path.relative_to(root).as_posix(), path)
            self._files[folder] = found
        return self._files[folder]

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Changes when a file comes, goes or is replaced."""
        paths = [path for folder in FOLDERS.values() for path in self.files(folder).values()]
        return tuple((str(path), status.st_mtime_ns, status.st_size) for path in paths for status in [path.stat()])

    def path(self, folder: str, name: str) -> Path:
        """The file that a widget names. Raises WeightsMissing, which lists those there are."""
        files = self.files(folder)
        if name not in files:
            known = ", ".join(files) or "none"
            raise WeightsMissing(f"models/{folder} has no {name!r}; it has {known}. Put the file there")
        return files[name]

    def matching(self, folder: str, patterns: Iterable[str]) -> Iterator[Path]:
        """Files whose names match a pattern, those of the first pattern first. Patterns are in lower case."""
        for pattern in patterns:
            for name, path in sorted(self.files(folder).items()):
                if fnmatch(Path(name).name.lower(), pattern):
                    yield path


def kind_of(path: Path) -> FileKind | None:
    """What ``path`` is; None for a file that cannot be read, which is logged once."""
    try:
        return identify(read_header(path))
    except WeightsMissing as error:
        if path not in _reported:
            _reported.add(path)
            _log.warning("NeuroLux: %s", error)
        return None


def complete(family: str, chosen: Mapping[str, Path], shelf: Shelf, lora: Path | None = None) -> SingleFilesSource:
    """A model of the ``chosen`` files; for a component that is not chosen, the first file that fits.

    Raises WeightsMissing, which says what is missing and where to put it, or which files do not belong together.
    """
    found = dict(chosen)
    check_single_files(family, SingleFilesSource(found))
    missing = [name for name in PARTS[family] if name not in found and not add_component(family, name, found, shelf)]
    if missing:
        raise WeightsMissing("; ".join(wanted(family, name) for name in missing))
    source = SingleFilesSource({name: found[name] for name in PARTS[family]}, lora)
    check_single_files(family, source)
    return source


def add_component(family: str, name: str, found: dict[str, Path], shelf: Shelf) -> bool:
    """Find a file for the component ``name`` and note it in ``found``; False where there is none."""
    part = PARTS[family][name]
    own = [path for path in found.values() if (kind := kind_of(path)) is not None and part in kind.parts]
    preferred = PREFERRED[family].get(name, ())
    checkpoints = PREFERRED[family].get("checkpoint", ())
    if not (family == "sdxl" and name == "vae"):  # its shapes are those of Stable Diffusion 1's: only the name tells
        preferred = (*preferred, "*")
    candidates = [
        *own,  # a checkpoint that is chosen already
        *shelf.matching(FOLDERS[name], preferred),
        *shelf.matching("checkpoints", (*checkpoints, *(() if name == DENOISERS[family] else ("*",)))),
    ]
    for path in dict.fromkeys(candidates):
        kind = kind_of(path)
        if kind is None or part not in kind.parts:
            continue
        trial = {**found, name: path}
        if fits(family, trial):
            found[name] = path
            return True
    return False


def fits(family: str, files: Mapping[str, Path]) -> bool:
    """Whether the components chosen so far have been made for each other."""
    try:
        check_single_files(family, SingleFilesSource(files))
    except WeightsMissing:
        return False
    return True


def wanted(family: str, name: str) -> str:
    """What to get for a component, and where to put it."""
    example = EXAMPLES[family][name]
    folder = "checkpoints" if family == "sdxl" and name != "unet" else FOLDERS[name]
    return f"no {NAMES[PARTS[family][name]]} found: put one, such as {example}, into ComfyUI's models/{folder}"


def catalog_files(catalog: Catalog, shelf: Shelf) -> Catalog:
    """``catalog``, its models with the single files that were found for them (``Model.local``).

    Looked for again only when a file has come, gone or changed: node definitions ask often.
    """
    stamp = (shelf.stamp(), tuple(catalog.models))
    if _found_for.get("stamp") != stamp:
        _found_for.clear()
        models = [model for model in catalog.models.values() if model.patterns]
        _found_for.update(stamp=stamp, local={model.name: local_variants(model, shelf) for model in models})
    found = _found_for["local"]
    return catalog.with_models(
        replace(model, local=found[model.name]) for model in catalog.models.values() if found.get(model.name)
    )


def local_variants(model: Model, shelf: Shelf) -> dict[int | None, SingleFilesSource]:
    """The complete sets of single files for a catalog model, by its number of steps."""
    found: dict[int | None, SingleFilesSource] = {}
    for steps in sorted(model.checkpoints) or [None]:
        for chosen, lora in beginnings(model, steps, shelf):
            try:
                found[steps] = complete(model.family, chosen, shelf, lora)
                break
            except WeightsMissing:
                continue
    return found


def beginnings(model: Model, steps: int | None, shelf: Shelf) -> Iterator[tuple[dict[str, Path], Path | None]]:
    """Files that tell the model: its denoiser, a checkpoint with it, or a LoRA that makes it of another."""
    denoiser = DENOISERS[model.family]
    part = PARTS[model.family][denoiser]
    patterns = {name: [pattern.format(steps=steps) for pattern in given] for name, given in model.patterns.items()}
    places = ((denoiser, FOLDERS[denoiser]), ("checkpoint", "checkpoints"), ("checkpoint", FOLDERS[denoiser]))
    for name, folder in places:
        for path in shelf.matching(folder, patterns.get(name, [])):
            if (kind := kind_of(path)) is not None and part in kind.parts:
                yield {denoiser: path}, None
    for lora in shelf.matching(FOLDERS["lora"], patterns.get("lora", [])):
        for path in shelf.matching("checkpoints", patterns.get("base", [])):
            if (kind := kind_of(path)) is not None and part in kind.parts:
                yield {denoiser: path}, lora


def catalog_name(catalog: Catalog, path: Path) -> Model | None:
    """The catalog model that a denoiser's file name belongs to."""
    name = path.name.lower()
    for model in catalog.models.values():
        denoiser = DENOISERS[model.family]
        given = [*model.patterns.get(denoiser, ()), *model.patterns.get("checkpoint", ())]
        for steps in sorted(model.checkpoints) or [None]:
            if any(fnmatch(name, pattern.format(steps=steps)) for pattern in given):
                return model
    return None


def distilled_steps(path: Path) -> int | None:
    """The number of steps that a Lightning file's name says it was distilled for."""
    match = STEPS.search(path.name)
    return int(match[1]) if match else None


def files_model(family: str, source: SingleFilesSource, catalog: Catalog) -> Model:
    """The model that ``source`` is. Files named as a catalog model's are that model: its licence and limits hold."""
    denoiser = source.components[DENOISERS[family]]
    name = " + ".join(dict.fromkeys(path.stem for path in (source.lora or denoiser, denoiser, *source.files)))
    steps = distilled_steps(source.lora or denoiser) if family == "sdxl" else None
    known = catalog_name(catalog, source.lora or denoiser)
    if known is not None and known.family == family:
        model = replace(known, name=name, title=name, source=source, vae=None, local={}, patterns={})
        if steps is None or steps not in known.checkpoints:
            return replace(model, checkpoints={})
        return distilled(replace(model, checkpoints={steps: known.checkpoints[steps]}), steps)
    guided = family == "flux" and bool(single_components(family, source)["transformer"].config["guidance_embeds"])
    if family == "flux":
        defaults = Defaults(1024, 1024, 28 if guided else 4, 3.5 if guided else 0.0)
        limits = Limits(num_inference_steps=StepLimit(1, 100 if guided else 50))
    else:
        defaults, limits = Defaults(1024, 1024, 30, 5.0), Limits(negative_prompt=True)
    model = Model(
        name=name,
        title=name,
        family=family,
        license="unknown",
        commercial_use=False,
        source=source,
        defaults=defaults,
        limits=size_limits(limits),
        max_sequence_length={"flux": 512 if guided else 256, "sdxl": 77}[family],
    )
    return model if steps is None else distilled(model, steps)


def distilled(model: Model, steps: int) -> Model:
    """``model`` as a Lightning model for ``steps``: trailing timesteps, no guidance, no other number of steps."""
    limits = replace(
        model.limits,
        num_inference_steps=StepLimit(steps, steps, (steps,)),
        guidance_scale=GuidanceLimit(0.0, 1.0),
        negative_prompt=False,
    )
    return replace(
        model,
        defaults=replace(model.defaults, num_inference_steps=steps, guidance_scale=0.0),
        limits=limits,
        scheduler=SchedulerChoice("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    )


def files_stamp(source: SingleFilesSource) -> tuple[int, ...]:
    """Changes whenever one of the files is replaced, or another is taken."""
    stamp: list[int] = []
    for path in source.files:
        status = path.stat() if path.is_file() else None
        stamp += [crc32(str(path).encode()), status.st_mtime_ns if status else 0, status.st_size if status else 0]
    return tuple(stamp)
