"""Motion adapters: files and folders in ComfyUI's models/animatediff_models/, and those of the catalog."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import folder_paths

from ..catalog.auxiliary import CatalogMotion, auxiliary_catalog
from ..errors import InvalidParameter
from ..families.parts.unet import lightning_steps
from ..loading.handle import AppliedMotion, PipelineHandle
from ..weights.download.auxiliary import fetch
from ..weights.headers import is_safetensors
from ..weights.progress import LoadReporter
from ..weights.stamps import CONFIG_FILE, FileStamp, stamp_file
from .folder_models import listed

AUTO = "auto"
FOLDER = "animatediff_models"
"""ComfyUI-AnimateDiff-Evolved uses the same folder, so both can share files."""
PLACE = f"ComfyUI's models/{FOLDER}/"


def folders() -> list[Path]:
    """The folders for the user's motion adapters."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir, FOLDER)))
    return [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]


def local_motions() -> dict[str, Path]:
    """The user's own adapters by name: single files, and folders with a configuration."""
    found: dict[str, Path] = {}
    for root in folders():
        for path in listed(root) if root.is_dir() else ():
            if is_safetensors(path) or (path / CONFIG_FILE).is_file():
                found.setdefault(path.name, path)
    return found


def motion_names() -> list[str]:
    """The available names: ``auto``, the user's own adapters, and the catalog's entries that none of them replaces."""
    own = list(local_motions())
    return [AUTO, *own, *(name for name in auxiliary_catalog().motions if name not in own)]


def motion_key(name: str) -> str:
    """A key that changes when the file called ``name`` is replaced."""
    path = local_motions().get(name)
    return stamp_file(name, path).key if path is not None else ""


def find_motion(name: str, pipeline: PipelineHandle, reporter: LoadReporter | None = None) -> AppliedMotion:
    """The motion adapter called ``name``, downloaded if necessary; ``auto``: the first for the pipeline's family.

    Raises InvalidParameter, WeightsMissing, AccessDenied or DownloadFailed.
    """
    family = pipeline.model.family
    for_family = [entry for entry in auxiliary_catalog().motions.values() if entry.family == family]
    if not for_family:
        names = ", ".join(dict.fromkeys(entry.family for entry in auxiliary_catalog().motions.values()))
        raise InvalidParameter(
            "model",
            f"{pipeline.model.name} is a {family} model, and AnimateDiff makes videos with {names} models; load one",
        )
    if name == AUTO:
        name = next((entry.name for entry in for_family if entry.name in local_motions()), for_family[0].name)
    path = local_motions().get(name)
    if path is not None:
        return own_motion(stamp_file(name, path), for_family)
    entry = auxiliary_catalog().motions.get(name)
    if entry is None:
        raise InvalidParameter(
            "motion",
            f"there is no motion adapter {name!r}; known are {', '.join(motion_names())}. Put the file into {PLACE}",
        )
    if entry.family != family:
        raise InvalidParameter(
            "motion",
            f"motion adapter {name} was made for {entry.family} and {pipeline.model.name} is a {family} model; "
            f"use {', '.join(other.name for other in for_family)}, or load a {entry.family} model",
        )
    folder = fetch(entry, [root / name for root in folders()], PLACE, reporter)
    path = folder if CONFIG_FILE in entry.files else folder / entry.files[0]
    return applied(stamp_file(name, path), entry)


def own_motion(file: FileStamp, for_family: list[CatalogMotion]) -> AppliedMotion:
    """A user's own adapter. Its name selects the sampling settings; by default, those of the family's undistilled
    adapter."""
    same = next((entry for entry in for_family if entry.name == file.name), None)
    if same is not None:
        return applied(file, same)
    steps = lightning_steps(file.name)
    plain = next((entry for entry in for_family if entry.only_steps is None), for_family[-1])
    distilled = next((entry for entry in for_family if entry.only_steps is not None), None)
    if steps is None or distilled is None:
        return applied(file, plain)
    return replace(applied(file, distilled), steps=steps, only_steps=steps)


def applied(file: FileStamp, entry: CatalogMotion) -> AppliedMotion:
    """``file`` with the sampling settings of ``entry``."""
    return AppliedMotion(file, entry.scheduler, entry.schedule, entry.steps, entry.guidance, entry.only_steps)
