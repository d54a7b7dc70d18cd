"""Reports which files of a model are on this machine, which are missing, and what a download would cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..catalog.models import FolderSource, Model, RepoSource, SingleFilesSource
from ..errors import WeightsMissing
from ..families.registry import family_of
from ..loading.components import ComponentFiles, component_files, shape_of, single_components
from ..planning.records import gigabytes
from ..weights.download.sources import ModelStatus, local_files
from .shelf import FOLDERS, Shelf
from .single_files import add_component, single_files_of, starting_files

DEFAULT_BYTES_PER_PARAMETER = 2


@dataclass(frozen=True)
class FoundPart:
    """One component that is on this machine."""

    component: str
    file: str
    folder: str
    type: str | None
    bytes: int


@dataclass(frozen=True)
class MissingPart:
    """One component without a file: the kind of file it needs, the folder to put it in, and its approximate size."""

    component: str
    kind: str
    folder: str
    example: str
    bytes: int | None


@dataclass(frozen=True)
class Download:
    """The download of the model from the Hub."""

    repo: str
    bytes: int | None
    gated: bool
    license: str
    """With a remark if it could not be checked."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model."""

    found: tuple[FoundPart, ...]
    missing: tuple[MissingPart, ...]
    download: Download | None
    hint: str


def inventory(model: Model, status: ModelStatus, shelf: Shelf) -> ModelFiles:
    """The files of ``model``. Reads headers only, and uses no network."""
    found = tuple(found_parts(model))
    if found:
        return ModelFiles(found, (), None, f"ready: {summary(found)}")
    source = model.source
    if not isinstance(source, RepoSource):
        return ModelFiles((), (), None, status.reason or "its files cannot be read")
    family = family_of(model.family)
    single = family.single_files is not None
    have = partly_here(model, shelf) if single else []
    components = {part.component for part in have}
    parts = tuple(family.components) if single else ()
    missing = tuple(missing_part(model, name) for name in parts if name not in components)
    remark = " (not verified)" if "license" in model.unverified else ""
    download = Download(source.repo, source.download_bytes, source.gated, model.license + remark)
    return ModelFiles(tuple(have), missing, download, hint(status, download, have, missing))


def found_parts(model: Model) -> Iterator[FoundPart]:
    """The components of a model that is complete on this machine."""
    steps = [model.variant(0), *sorted(steps for steps in model.local if steps is not None)]
    files = next((files for variant in steps if (files := local_files(model, variant)) is not None), None)
    if files is None:
        return
    try:
        components = component_files(model, None, files)
    except WeightsMissing:
        return
    yield from (found_part(name, component) for name, component in components.items())


def found_part(name: str, component: ComponentFiles) -> FoundPart:
    """One component as a row of the report."""
    path = component.files[0]
    file = path.name if len(component.files) == 1 else f"{len(component.files)} files"
    return FoundPart(name, file, str(path.parent), shape_of(component).stored, component.bytes)


def partly_here(model: Model, shelf: Shelf) -> list[FoundPart]:
    """The single files of a model that is incomplete."""
    chosen: dict[str, Path] = {}
    for steps in sorted(model.checkpoints) or [None]:
        first = next(starting_files(model, steps, shelf), None)
        if first is not None:
            chosen = dict(first[0])
            break
    family = family_of(model.family)
    for name in family.components:
        if name not in chosen and name != family.denoiser:
            add_component(family, name, chosen, shelf)
    found: list[FoundPart] = []
    for name, path in chosen.items():
        try:
            alone = component_files_of(model, name, path)
        except WeightsMissing:
            continue
        found.append(found_part(name, alone))
    return found


def component_files_of(model: Model, name: str, path: Path) -> ComponentFiles:
    """One component in a single file."""
    return single_components(model.family, SingleFilesSource({name: path}))[name]


def missing_part(model: Model, name: str) -> MissingPart:
    """What to download for a missing component."""
    family = family_of(model.family)
    shape, files = model.components.get(name), single_files_of(family)
    example = files.example_for(model.name, name) or files.examples[name]
    size = shape.parameters * DEFAULT_BYTES_PER_PARAMETER if shape is not None else None
    return MissingPart(name, family.components[name].part.title, f"models/{FOLDERS[name]}", example, size)


def hint(status: ModelStatus, download: Download, have: list[FoundPart], missing: tuple[MissingPart, ...]) -> str:
    """One line of text that says what to do."""
    size = gigabytes(download.bytes) if download.bytes else "of unknown size"
    gated = ", gated" if download.gated else ""
    fetch = f"download {download.repo} ({size}{gated}, {download.license})"
    if status.state == "downloadable":
        fetch = f"the first use will {fetch}"
    elif status.reason:
        fetch = f"to {fetch}: {status.reason}"
    if not have or not missing:
        return fetch
    rest = ", ".join(f"{part.example} in {part.folder}" for part in missing)
    return f"of its single files, only {rest} is missing; or {fetch}"


def summary(found: tuple[FoundPart, ...]) -> str:
    """The file names and their total size."""
    total = sum(part.bytes for part in found)
    names: Mapping[str, None] = dict.fromkeys(part.file for part in found)
    return f"{', '.join(names)} ({gigabytes(total)})"


def source_name(model: Model) -> str:
    """The name of the model's source: a folder, a repository, or the model itself."""
    source = model.source
    if isinstance(source, FolderSource):
        return source.path.name
    if isinstance(source, SingleFilesSource):
        return model.name
    return source.repo
