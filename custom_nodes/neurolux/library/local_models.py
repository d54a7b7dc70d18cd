"""Finds the model to plan for: a catalog model, a diffusers folder, or a weight file in ComfyUI's folders.

Needs no ComfyUI, and imports torch only to read a file, so ``imagegen plan`` works without a service.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog.models import Catalog, FolderSource, Model, SingleFilesSource
from ..errors import ModelNotFound, WeightsMissing
from ..families.files.identify import family_of_file, main_files, read_kind
from ..families.spec import FamilySpec
from ..planning.records import ComponentShape
from .folder_models import as_shipped, folder_model, model_folders
from .shelf import Shelf

if TYPE_CHECKING:
    from ..weights.download.sources import ResolvedFiles

SUBFOLDERS: dict[str, tuple[str, ...]] = {
    "diffusion_models": ("diffusion_models", "unet"),
    "text_encoders": ("text_encoders", "clip"),
    "vae": ("vae",),
    "checkpoints": ("checkpoints",),
    "loras": ("loras",),
}
"""The subfolders of a models folder by ComfyUI's name for their kind (ComfyUI's folder_paths.py)."""
MAIN_FOLDERS = ("diffusion_models", "checkpoints")
"""The kinds of folders that hold a model's main file, the one with the denoiser."""


@dataclass(frozen=True)
class MeasuredModel:
    """A model with the sizes of its components, from its files if they are on this machine."""

    model: Model
    shapes: Mapping[str, ComponentShape]
    force_upcast_vae: bool
    note: str | None = None
    """A remark about the sizes, for the user."""


def measured_model(name: str, catalog: Catalog, models: Iterable[Path], steps: int | None = None) -> MeasuredModel:
    """The model called ``name``: a catalog model, a diffusers folder or main file below one of the folders
    ``models``, or the path of either.

    The sizes of a catalog model come from its files if they are on this machine, else from the catalog. ``steps``
    chooses between the files of a distilled model. Raises ModelNotFound, or WeightsMissing for unusable files.
    """
    models = tuple(models)
    folder = local_folder(name, models)
    if folder is not None:
        model = folder_model(folder)
        if model is None:
            raise WeightsMissing(f"{folder} is not a diffusers folder of a known family; see its model_index.json")
        return measured_folder(as_shipped(model, catalog))
    if name in catalog.models:
        return measured_catalog_model(catalog.get(name), catalog, models, steps)
    path = Path(name).expanduser()
    if not path.is_file():
        found = main_file(name, folder_shelf(models)) if holds_files(models) else None
        if found is None:
            raise ModelNotFound(name, [*catalog.models, *local_names(models, catalog)])
        path = found
    return measured_file(path, folder_shelf(models), catalog)


def local_folder(name: str, models: Iterable[Path]) -> Path | None:
    """The diffusers folder at the path ``name``, or with that name in ``diffusers``; None if there is none."""
    candidates = [*(root / "diffusers" / name for root in models), Path(name).expanduser()]
    return next((path for path in candidates if name and (path / "model_index.json").is_file()), None)


def local_names(models: Iterable[Path], catalog: Catalog) -> list[str]:
    """The names of local models that are not in the catalog: diffusers folders and main files."""
    models = tuple(models)
    names = [folder.name for folder in model_folders(root / "diffusers" for root in models)]
    if holds_files(models):
        shelf = folder_shelf(models)
        names += [f"{folder}/{name}" for folder in MAIN_FOLDERS for name in shelf.files(folder)]
    return [name for name in dict.fromkeys(names) if name not in catalog.models]


def holds_files(models: Iterable[Path]) -> bool:
    """Whether any folder for main files contains a file."""
    shelf = folder_shelf(models)
    return any(shelf.files(folder) for folder in MAIN_FOLDERS)


def folder_shelf(models: Iterable[Path]) -> Shelf:
    """The weight files below the folders ``models``, as ComfyUI would list them."""
    models = tuple(models)
    return Shelf({kind: tuple(root / name for root in models for name in names) for kind, names in SUBFOLDERS.items()})


def main_file(name: str, shelf: Shelf) -> Path | None:
    """The main file for ``name``: ``folder/file``, a file name, or a file name without its suffix; None if missing."""
    for folder in MAIN_FOLDERS:
        for relative, path in shelf.files(folder).items():
            if name in (f"{folder}/{relative}", relative, path.name, path.stem):
                return path
    return None


def measured_folder(model: Model) -> MeasuredModel:
    """A model with the sizes from its diffusers folder. Raises WeightsMissing if the folder is incomplete."""
    from ..weights.download.sources import ResolvedFiles

    assert isinstance(model.source, FolderSource)
    return measured(model, None, ResolvedFiles(model.source.path))


def measured_catalog_model(
    model: Model, catalog: Catalog, models: tuple[Path, ...], steps: int | None
) -> MeasuredModel:
    """A catalog model with the sizes from its single files, if present, else from the catalog."""
    if model.patterns and holds_files(models):
        from ..weights.download.sources import ResolvedFiles
        from .single_files import catalog_files

        local = catalog_files(catalog, folder_shelf(models)).get(model.name).local
        variant = model.variant(steps or 0)
        if variant in local:
            return measured(model, variant, ResolvedFiles(single=local[variant]))
    return MeasuredModel(model, model.components, model.force_upcast_vae)


def measured(model: Model, variant: int | None, files: ResolvedFiles) -> MeasuredModel:
    """``model`` with the sizes from the headers of its ``files``."""
    from ..loading.components import shapes_of, vae_must_upcast

    return MeasuredModel(model, shapes_of(model, variant, files), vae_must_upcast(files))


def measured_file(path: Path, shelf: Shelf, catalog: Catalog) -> MeasuredModel:
    """The model of a main file. Missing components get the sizes of a catalog model of the same family."""
    from ..loading.components import check_single_files, shape_of, single_components
    from .single_files import add_component, files_model

    family, chosen = main_component(path)
    parts = family.components
    check_single_files(family.name, SingleFilesSource(chosen))
    missing = [name for name in parts if name not in chosen and not add_component(family, name, chosen, shelf)]
    source = SingleFilesSource({name: chosen[name] for name in parts if name in chosen})
    model = files_model(family, source, catalog)
    shapes = {name: shape_of(component) for name, component in single_components(family.name, source).items()}
    if not missing:
        return MeasuredModel(model, shapes, True)
    relative = next(
        (
            known
            for known in catalog.models.values()
            if known.family == family.name and known.name != catalog.fallback and set(missing) <= set(known.components)
        ),
        None,
    )
    if relative is None:
        raise WeightsMissing(f"{path.name}: no file found for {', '.join(missing)}")
    shapes |= {name: relative.components[name] for name in missing}
    note = f"no file found for {', '.join(missing)}: the plan assumes the published size of {relative.name}"
    return MeasuredModel(replace(model, name=path.stem, title=path.stem), shapes, True, note)


def main_component(path: Path) -> tuple[FamilySpec, dict[str, Path]]:
    """The family of a main file, and the file as its denoiser. Raises WeightsMissing for another kind of file."""
    kind = read_kind(path)
    family = family_of_file(kind)
    if family is None:
        raise WeightsMissing(f"{path.name} is a {kind.kind}; choose one of: {main_files()}, or a checkpoint with one")
    return family, {family.denoiser: path}
