"""A model from the weight files that a user chose by name, with the rest found in ComfyUI's folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..catalog.models import Model
from ..errors import InvalidParameter, WeightsMissing
from ..families.files.identify import family_of_file, main_files, read_kind
from ..families.spec import FamilySpec
from ..weights.file_kinds import FileKind
from .known_models import comfy_shelf, known_models
from .shelf import FOLDERS, Shelf
from .single_files import AUTO, complete, files_model


@dataclass(frozen=True)
class ChosenFiles:
    """One choice per component: ``folder/file``, or ``auto`` for the first file that fits."""

    model_file: str
    """The file with the denoiser; never ``auto``."""
    text_encoder: str = AUTO
    text_encoder_2: str = AUTO
    vae: str = AUTO
    family: str = AUTO
    """The only family to accept; ``auto`` accepts the file's own."""


def file_choices(shelf: Shelf, *folders: str) -> list[str]:
    """The files of ``folders``, as ``folder/file``."""
    return [f"{folder}/{name}" for folder in folders for name in shelf.files(folder)]


def chosen_model(files: ChosenFiles) -> Model:
    """The model in ``files``. Raises WeightsMissing or InvalidParameter, which name what to change."""
    shelf = comfy_shelf()
    main = chosen_file(shelf, files.model_file)
    family = chosen_family(main, files.family, read_kind(main))
    chosen = {family.denoiser: main}
    for name in ("text_encoder", "text_encoder_2", "vae"):
        value = getattr(files, name)
        if value != AUTO:
            chosen[name] = chosen_component(shelf, family, name, value)
    return files_model(family, complete(family, chosen, shelf), known_models())


def chosen_file(shelf: Shelf, name: str) -> Path:
    """The path of ``folder/file``. Raises WeightsMissing if there is no such file."""
    folder, _, file = name.partition("/")
    if folder not in FOLDERS.values() or not file:
        raise WeightsMissing(
            f"{name!r} names no file; write folder/file, such as diffusion_models/flux1-schnell.safetensors"
        )
    return shelf.path(folder, file)


def chosen_family(path: Path, wanted: str, kind: FileKind) -> FamilySpec:
    """The main file's family. Raises for a file without a denoiser, or of another family than ``wanted``."""
    found = family_of_file(kind)
    if found is None:
        raise WeightsMissing(
            f"{path.name} is a {kind.kind}; model_file needs one of: {main_files()}, or a checkpoint with one"
        )
    if wanted not in (AUTO, found.name):
        raise InvalidParameter("family", f"{path.name} is a {kind.kind}, and family is {wanted}; set it to {AUTO}")
    return found


def chosen_component(shelf: Shelf, family: FamilySpec, name: str, value: str) -> Path:
    """The file for the component ``name``. Raises if the family has no such component, or the file does not hold it."""
    if name not in family.components:
        raise InvalidParameter(name, f"{family.title} has no {name}; set it to {AUTO}")
    path = chosen_file(shelf, value)
    kind, part = read_kind(path), family.components[name].part
    if part.name not in kind.parts:
        raise WeightsMissing(
            f"{path.name} is a {kind.kind}; {name} needs a {part.title}: choose another file, or {AUTO}"
        )
    return path
