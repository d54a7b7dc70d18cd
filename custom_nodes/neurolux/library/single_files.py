"""Models in single files: which of the files in ComfyUI's own folders make a model together.

A file is what its tensors say (families/identify.py). Its name only decides between several that fit:
``models.toml`` has the names under which a model's files are published. Weights are not read here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from zlib import crc32

from ..catalog.models import Catalog, Model, SingleFilesSource
from ..errors import WeightsMissing
from ..families.identify import identify
from ..families.registry import family_of
from ..families.spec import FamilySpec, SingleFiles
from ..loading.components import check_single_files, single_components
from ..weights.file_kinds import FileKind
from ..weights.headers import READABLE, read_header
from .folder_models import own_model

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


def complete(
    family: FamilySpec, chosen: Mapping[str, Path], shelf: Shelf, lora: Path | None = None
) -> SingleFilesSource:
    """A model of the ``chosen`` files; for a component that is not chosen, the first file that fits.

    Raises WeightsMissing, which says what is missing and where to put it, or which files do not belong together.
    """
    found = dict(chosen)
    check_single_files(family.name, SingleFilesSource(found))
    parts = family.components
    missing = [name for name in parts if name not in found and not add_component(family, name, found, shelf)]
    if missing:
        raise WeightsMissing("; ".join(wanted(family, name) for name in missing))
    source = SingleFilesSource({name: found[name] for name in parts}, lora)
    check_single_files(family.name, source)
    return source


def add_component(family: FamilySpec, name: str, found: dict[str, Path], shelf: Shelf) -> bool:
    """Find a file for the component ``name`` and note it in ``found``; False where there is none."""
    files = single_files_of(family)
    part = family.components[name].part.name
    own = [path for path in found.values() if (kind := kind_of(path)) is not None and part in kind.parts]
    preferred = files.preferred.get(name, ())
    checkpoints = files.preferred.get("checkpoint", ())
    if name not in files.only_by_name:
        preferred = (*preferred, "*")
    candidates = [
        *own,  # a checkpoint that is chosen already
        *shelf.matching(FOLDERS[name], preferred),
        *shelf.matching("checkpoints", (*checkpoints, *(() if name == family.denoiser else ("*",)))),
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


def fits(family: FamilySpec, files: Mapping[str, Path]) -> bool:
    """Whether the components chosen so far have been made for each other."""
    try:
        check_single_files(family.name, SingleFilesSource(files))
    except WeightsMissing:
        return False
    return True


def wanted(family: FamilySpec, name: str) -> str:
    """What to get for a component, and where to put it."""
    files = single_files_of(family)
    folder = files.folders.get(name, FOLDERS[name])
    part = family.components[name].part.title
    return f"no {part} found: put one, such as {files.examples[name]}, into ComfyUI's models/{folder}"


def single_files_of(family: FamilySpec) -> SingleFiles:
    """How the family's single files are told apart. Raises WeightsMissing for a family that has none."""
    if family.single_files is None:
        raise WeightsMissing(f"{family.title} is read from diffusers folders only; put one into models/diffusers")
    return family.single_files


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
                found[steps] = complete(family_of(model.family), chosen, shelf, lora)
                break
            except WeightsMissing:
                continue
    return found


def beginnings(model: Model, steps: int | None, shelf: Shelf) -> Iterator[tuple[dict[str, Path], Path | None]]:
    """Files that tell the model: its denoiser, a checkpoint with it, or a LoRA that makes it of another."""
    family = family_of(model.family)
    denoiser = family.denoiser
    part = family.components[denoiser].part.name
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
        denoiser = family_of(model.family).denoiser
        given = [*model.patterns.get(denoiser, ()), *model.patterns.get("checkpoint", ())]
        for steps in sorted(model.checkpoints) or [None]:
            if any(fnmatch(name, pattern.format(steps=steps)) for pattern in given):
                return model
    return None


def files_model(family: FamilySpec, source: SingleFilesSource, catalog: Catalog) -> Model:
    """The model that ``source`` is. Files named as a catalog model's are that model: its licence and limits hold."""
    files = single_files_of(family)
    denoiser = source.components[family.denoiser]
    name = " + ".join(dict.fromkeys(path.stem for path in (source.lora or denoiser, denoiser, *source.files)))
    steps = files.steps_of((source.lora or denoiser).name)
    known = catalog_name(catalog, source.lora or denoiser)
    if known is not None and known.family == family.name:
        model = replace(known, name=name, title=name, source=source, vae=None, local={}, patterns={})
        if steps is None or steps not in known.checkpoints:
            return replace(model, checkpoints={})
        return files.distilled(replace(model, checkpoints={steps: known.checkpoints[steps]}), steps)
    configs = {part: found.config for part, found in single_components(family.name, source).items()}
    model = own_model(name, family, source, files.facts(configs))
    return model if steps is None else files.distilled(model, steps)


def files_stamp(source: SingleFilesSource) -> tuple[int, ...]:
    """Changes whenever one of the files is replaced, or another is taken."""
    stamp: list[int] = []
    for path in source.files:
        status = path.stat() if path.is_file() else None
        stamp += [crc32(str(path).encode()), status.st_mtime_ns if status else 0, status.st_size if status else 0]
    return tuple(stamp)
