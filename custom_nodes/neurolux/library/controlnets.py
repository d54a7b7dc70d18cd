"""ControlNets and preprocessors: files in ComfyUI's own folders, and those of the catalog, downloaded on first use."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import folder_paths

from ..adapters.borrow import borrow
from ..adapters.control.applied import AUTO_MODE
from ..adapters.control.choice import choose_catalog, choose_file, model_width
from ..catalog.auxiliary import AuxiliaryModel, CatalogControlNet, auxiliary_catalog
from ..errors import InvalidParameter
from ..loading.handle import PipelineHandle
from ..weights.download.auxiliary import auxiliary_status, fetch
from ..weights.progress import LoadReporter
from ..weights.stamps import FileStamp, stamp_file
from .adapter_folders import adapter_names, find_adapter, locate, stamp_key

AUTO = "auto"
PREPROCESSORS = "preprocessors"
CONTROLNET_PLACE = "ComfyUI's models/controlnet/, and choose them there"
_log = logging.getLogger(__name__)


def controlnet_names() -> list[str]:
    """The available names: ``auto``, the user's files, and the catalog's entries that no file replaces."""
    files = adapter_names("controlnet")
    return [AUTO, *files, *(name for name in auxiliary_catalog().controlnets if name not in files)]


def find_controlnet(name: str, pipeline: PipelineHandle, mode: str, reporter: LoadReporter | None = None) -> FileStamp:
    """The ControlNet called ``name``, downloaded if necessary; ``auto``: the one for this model and kind of image.

    Raises InvalidParameter, WeightsMissing, AccessDenied or DownloadFailed.
    """
    if name == AUTO:
        return automatic(pipeline, mode, reporter)
    entry = auxiliary_catalog().controlnets.get(name)
    if entry is None or locate("controlnet", name) is not None:
        return find_adapter("controlnet", name, more=tuple(auxiliary_catalog().controlnets))
    return downloaded_controlnet(entry, reporter)


def automatic(pipeline: PipelineHandle, mode: str, reporter: LoadReporter | None) -> FileStamp:
    """The ControlNet that ``auto`` selects for ``pipeline``. Raises InvalidParameter if none fits."""
    if mode == AUTO_MODE:
        raise InvalidParameter(
            "controlnet",
            "controlnet auto requires a mode (the kind of control image): set mode, or choose a ControlNet",
        )
    model = pipeline.model
    width = model_width(model.family, borrow(pipeline).denoiser)
    paths = [(name, locate("controlnet", name)) for name in adapter_names("controlnet")]
    files = [stamp_file(name, path) for name, path in paths if path is not None]
    chosen = choose_file(files, model.family, width, mode)
    if chosen is None:
        entry = choose_catalog(list(auxiliary_catalog().controlnets.values()), model.family, width, mode)
        if entry is None:
            raise InvalidParameter(
                "controlnet",
                f"there is no ControlNet for {mode} images that fits {model.name}: the catalog has none, and no file "
                f"in ComfyUI's models/controlnet/ with {mode!r} or 'union' in its name does; put one there, or choose "
                "one by name",
            )
        chosen = downloaded_controlnet(entry, reporter)
    _log.info("NeuroLux: ControlNet for %s on %s: %s", mode, model.name, chosen.name)
    return chosen


def downloaded_controlnet(entry: CatalogControlNet, reporter: LoadReporter | None) -> FileStamp:
    """The stamp of a ControlNet of the catalog, downloaded if necessary."""
    folder = fetch(entry, [], CONTROLNET_PLACE, reporter)
    return stamp_file(entry.name, folder / entry.files[0])


def controlnet_key(name: str) -> str:
    """A key that changes when the file called ``name`` is replaced; for ``auto``, when any file is."""
    if name == AUTO:
        return "".join(stamp_key("controlnet", file) for file in adapter_names("controlnet"))
    return stamp_key("controlnet", name)


def preprocessor_folders(name: str) -> list[Path]:
    """The folders where a user may have put the files of a preprocessor."""
    return [Path(folder_paths.models_dir, PREPROCESSORS, name)]


def preprocessor(name: str, reporter: LoadReporter | None = None) -> Path:
    """The folder of the catalog's preprocessor ``name``, downloaded if necessary.

    Raises WeightsMissing, AccessDenied or DownloadFailed.
    """
    entry = auxiliary_catalog().preprocessors[name]
    return fetch(entry, preprocessor_folders(name), f"ComfyUI's models/{PREPROCESSORS}/{name}/", reporter)


def auxiliary_documents() -> list[dict[str, Any]]:
    """The catalog's ControlNets and preprocessors as JSON, in addition to the files of ``adapter_documents``."""
    catalog = auxiliary_catalog()
    found = [
        auxiliary_document(entry, "controlnet", entry.family, [], CONTROLNET_PLACE)
        for entry in catalog.controlnets.values()
    ]
    for entry in catalog.preprocessors.values():
        place = f"ComfyUI's models/{PREPROCESSORS}/{entry.name}/"
        found.append(auxiliary_document(entry, "preprocessor", None, preprocessor_folders(entry.name), place))
    return found


def auxiliary_document(
    model: AuxiliaryModel, kind: str, family: str | None, folders: list[Path], place: str
) -> dict[str, Any]:
    """One auxiliary model as JSON."""
    status = auxiliary_status(model, folders, place)
    return {
        "name": model.name,
        "kind": kind,
        "family": family,
        "bytes": model.download_bytes,
        "problem": None,
        "memory": None,
        "title": model.title,
        "license": model.license_text,
        "status": status.state,
        "reason": status.reason,
        "source": model.repo,
    }
