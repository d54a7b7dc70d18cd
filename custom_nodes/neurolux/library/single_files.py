"""Models in single files: finds the files in ComfyUI's own folders that together make a model.

The tensors in a file determine its kind (families/files/identify.py). Its name only decides between several files that
fit: ``models.toml`` lists the names under which a model's files are published. This module reads no weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from zlib import crc32

from ..catalog.models import Catalog, Model, SingleFilesSource
from ..errors import WeightsMissing
from ..families.files.identify import read_kind
from ..families.registry import family_of
from ..families.spec import FamilySpec, SingleFiles
from ..loading.components import check_single_files, single_components
from ..weights.file_kinds import FileKind
from .folder_models import own_model
from .shelf import FOLDERS, Shelf, file_stamp

AUTO = "auto"
_log = logging.getLogger(__name__)
_reported: set[Path] = set()
_found_for: dict[str, Any] = {}


def kind_of(path: Path) -> FileKind | None:
    """The kind of the file at ``path``; None if it cannot be read, which is logged once."""
    try:
        return read_kind(path)
    except WeightsMissing as error:
        if path not in _reported:
            _reported.add(path)
            _log.warning("NeuroLux: %s", error)
        return None


def complete(
    family: FamilySpec, chosen: Mapping[str, Path], shelf: Shelf, lora: Path | None = None
) -> SingleFilesSource:
    """A model from the ``chosen`` files. Each other component gets the first file that fits.

    Raises WeightsMissing, which says what is missing and where to put it, or which files do not belong together.
    """
    found = dict(chosen)
    check_supported(family, found)
    check_single_files(family.name, SingleFilesSource(found))
    parts = family.components
    missing = [name for name in parts if name not in found and not add_component(family, name, found, shelf)]
    if missing:
        raise WeightsMissing("; ".join(missing_text(family, name) for name in missing))
    source = SingleFilesSource({name: found[name] for name in parts}, lora)
    check_single_files(family.name, source)
    return source


def check_supported(family: FamilySpec, chosen: Mapping[str, Path]) -> None:
    """Raise WeightsMissing for a denoiser that has the family's tensors and that the pack cannot run, by its name."""
    denoiser = chosen.get(family.denoiser)
    what = None if denoiser is None or family.single_files is None else family.single_files.refused(denoiser.name)
    if denoiser is not None and what is not None:
        raise WeightsMissing(
            f"{denoiser.name} is a {family.title} {what}, which the pack does not support; choose another file, or "
            "rename it if it is none"
        )


def add_component(family: FamilySpec, name: str, found: dict[str, Path], shelf: Shelf) -> bool:
    """Find a file for the component ``name`` and add it to ``found``. Returns False if there is none."""
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
        if any(fnmatch(path.name.lower(), pattern) for pattern in files.foreign.get(name, ())):
            continue
        trial = {**found, name: path}
        if fits(family, trial):
            found[name] = path
            return True
    return False


def fits(family: FamilySpec, files: Mapping[str, Path]) -> bool:
    """Whether the components chosen so far were made for each other."""
    try:
        check_single_files(family.name, SingleFilesSource(files))
    except WeightsMissing as error:
        _log.debug("NeuroLux: %s", error)
        return False
    return True


def missing_text(family: FamilySpec, name: str) -> str:
    """The text that says which file a component needs, and where to put it."""
    files = single_files_of(family)
    folder = files.folders.get(name, FOLDERS[name])
    part = family.components[name].part.title
    return f"no {part} found: put one, such as {files.examples[name]}, into ComfyUI's models/{folder}"


def single_files_of(family: FamilySpec) -> SingleFiles:
    """The family's facts about single files. Raises WeightsMissing for a family without them."""
    if family.single_files is None:
        raise WeightsMissing(
            f"{family.title} can only be loaded from a diffusers folder; put one into models/diffusers"
        )
    return family.single_files


def catalog_files(catalog: Catalog, shelf: Shelf) -> Catalog:
    """``catalog`` with the single files on this machine added to its models (``Model.local``).

    The result is cached until a file is added, removed or replaced, because node definitions ask often.
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
    """The complete sets of single files for a catalog model, by number of steps."""
    found: dict[int | None, SingleFilesSource] = {}
    for steps in sorted(model.checkpoints) or [None]:
        for chosen, lora in starting_files(model, steps, shelf):
            try:
                source = complete(family_of(model.family), chosen, shelf, lora)
                if fills(family_of(model.family), source) == (model.purpose == "fill"):
                    found[steps] = source
                    break
            except WeightsMissing:
                continue
            except Exception as error:  # the right names with impossible shapes
                _log.warning("NeuroLux: %s is not used: %r", ", ".join(map(str, chosen.values())), error)
                continue
    return found


def starting_files(model: Model, steps: int | None, shelf: Shelf) -> Iterator[tuple[dict[str, Path], Path | None]]:
    """The files that identify the model: its denoiser, a checkpoint with it, or a base checkpoint and its LoRA."""
    family = family_of(model.family)
    denoiser = family.denoiser
    part = family.components[denoiser].part.name
    patterns = {name: [pattern.format(steps=steps) for pattern in given] for name, given in model.patterns.items()}
    places = ((denoiser, FOLDERS[denoiser]), ("checkpoint", "checkpoints"), ("checkpoint", FOLDERS[denoiser]))
    for name, folder in places:
        for path in shelf.matching(folder, patterns.get(name, [])):
            if distilled_otherwise(model, steps, path):
                continue
            if (kind := kind_of(path)) is not None and part in kind.parts:
                yield {denoiser: path}, None
    for lora in shelf.matching(FOLDERS["lora"], patterns.get("lora", [])):
        for path in shelf.matching("checkpoints", patterns.get("base", [])):
            if (kind := kind_of(path)) is not None and part in kind.parts:
                yield {denoiser: path}, lora


def distilled_otherwise(model: Model, steps: int | None, path: Path) -> bool:
    """Whether the name of a denoiser's file says that it was distilled for another number of steps than ``model``."""
    files = family_of(model.family).single_files
    stated = None if files is None else files.steps_of(path.name)
    return stated not in (None, steps, model.defaults.num_inference_steps)


def catalog_name(catalog: Catalog, path: Path) -> Model | None:
    """The catalog model that the file name of a denoiser belongs to; None if there is none."""
    name = path.name.lower()
    for model in catalog.models.values():
        denoiser = family_of(model.family).denoiser
        given = [*model.patterns.get(denoiser, ()), *model.patterns.get("checkpoint", ())]
        for steps in sorted(model.checkpoints) or [None]:
            if any(fnmatch(name, pattern.format(steps=steps)) for pattern in given):
                return model
    return None


def files_model(family: FamilySpec, source: SingleFilesSource, catalog: Catalog) -> Model:
    """The model in ``source``. Files with the names of a catalog model get its licence and limits."""
    files = single_files_of(family)
    denoiser = source.components[family.denoiser]
    name = " + ".join(dict.fromkeys(path.stem for path in (source.lora or denoiser, denoiser, *source.files)))
    steps = files.steps_of((source.lora or denoiser).name)
    known = catalog_name(catalog, source.lora or denoiser)
    if known is not None and known.family == family.name and fills(family, source) == (known.purpose == "fill"):
        model = replace(known, name=name, title=name, source=source, vae=None, local={}, patterns={})
        if steps is None or (known.checkpoints and steps not in known.checkpoints):
            return replace(model, checkpoints={})
        if not known.checkpoints:
            return files.distilled(model, steps)
        return files.distilled(replace(model, checkpoints={steps: known.checkpoints[steps]}), steps)
    configs = {part: found.config for part, found in single_components(family.name, source).items()}
    model = own_model(name, family, source, files.facts(configs))
    return model if steps is None else files.distilled(model, steps)


def fills(family: FamilySpec, source: SingleFilesSource) -> bool:
    """Whether the denoiser only fills masked images, whatever its file is called."""
    main = SingleFilesSource({family.denoiser: source.components[family.denoiser]})
    config = single_components(family.name, main)[family.denoiser].config
    return family.single_files is not None and family.single_files.fills(config)


def files_stamp(source: SingleFilesSource) -> tuple[int, ...]:
    """A stamp that changes when one of the files is replaced, or another file is used."""
    stamp: list[int] = []
    for path in source.files:
        stamp += [crc32(str(path).encode("utf-8", "surrogateescape")), *file_stamp(path)]
    return tuple(stamp)
