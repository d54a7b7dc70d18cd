"""ControlNets and preprocessors: files in ComfyUI's own folders, and those of the catalog, fetched on first use."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import folder_paths

from ..adapters.borrow import borrow
from ..adapters.control_choice import choose_catalog, choose_file, model_width
from ..adapters.controlnets import AUTO_MODE
from ..catalog.auxiliary import CatalogControlNet, HelperModel, helper_catalog
from ..errors import InvalidParameter
from ..loading.handle import PipelineHandle
from ..weights.auxiliary import fetch, helper_status
from ..weights.progress import LoadReporter
from ..weights.stamps import FileStamp, stamp_file
from .adapter_folders import adapter_names, find_adapter, locate, stamp_key

AUTO = "auto"
PREPROCESSORS = "preprocessors"
CONTROLNET_PLACE = "ComfyUI's models/controlnet/, and choose them there"
_log = logging.getLogger(__name__)


def controlnet_names() -> list[str]:
    """What there is to choose from: ``auto``, the user's files, and the catalog's that they do not replace."""
    files = adapter_names("controlnet")
    return [AUTO, *files, *(name for name in helper_catalog().controlnets if name not in files)]


def find_controlnet(name: str, pipeline: PipelineHandle, mode: str, reporter: LoadReporter | None = None) -> FileStamp:
    """The ControlNet called ``name``, fetched if need be; ``auto``: the one for this model and kind of image.

    Raises InvalidParameter, and what a download can raise.
    """
    if name == AUTO:
        return automatic(pipeline, mode, reporter)
    entry = helper_catalog().controlnets.get(name)
    if entry is None or locate("controlnet", name) is not None:
        return find_adapter("controlnet", name, more=tuple(helper_catalog().controlnets))
    return fetched(entry, reporter)


def automatic(pipeline: PipelineHandle, mode: str, reporter: LoadReporter | None) -> FileStamp:
    """What ``auto`` means for ``pipeline``."""
    if mode == AUTO_MODE:
        raise InvalidParameter(
            "controlnet", "controlnet auto needs to know what the image shows: set mode, or choose a ControlNet"
        )
    model = pipeline.model
    width = model_width(model.family, borrow(pipeline).denoiser)
    paths = [(name, locate("controlnet", name)) for name in adapter_names("controlnet")]
    files = [stamp_file(name, path) for name, path in paths if path is not None]
    chosen = choose_file(files, model.family, width, mode)
    if chosen is None:
        entry = choose_catalog(list(helper_catalog().controlnets.values()), model.family, width, mode)
        if entry is None:
            raise InvalidParameter(
                "controlnet",
                f"there is no ControlNet for {mode} images that fits {model.name}: the catalog has none, and no file "
                f"in ComfyUI's models/controlnet/ with {mode!r} or 'union' in its name does; put one there, or choose "
                "one by name",
            )
        chosen = fetched(entry, reporter)
    _log.info("NeuroLux: ControlNet for %s on %s: %s", mode, model.name, chosen.name)
    return chosen


def fetched(entry: CatalogControlNet, reporter: LoadReporter | None) -> FileStamp:
    """A ControlNet of the catalog, on this machine."""
    folder = fetch(entry, [], CONTROLNET_PLACE, reporter)
    return stamp_file(entry.name, folder / entry.files[0])


def controlnet_key(name: str) -> str:
    """Changes whenever the file called ``name`` is replaced; for ``auto``: whenever any file is."""
    if name == AUTO:
        return "".join(stamp_key("controlnet", file) for file in adapter_names("controlnet"))
    return stamp_key("controlnet", name)


def preprocessor_folders(name: str) -> list[Path]:
    """Where a user may have put a preprocessor's files."""
    return [Path(folder_paths.models_dir, PREPROCESSORS, name)]


def preprocessor(name: str, reporter: LoadReporter | None = None) -> Path:
    """The folder of the catalog's preprocessor ``name``, fetched if need be. Raises what a download can raise."""
    entry = helper_catalog().preprocessors[name]
    return fetch(entry, preprocessor_folders(name), f"ComfyUI's models/{PREPROCESSORS}/{name}/", reporter)


def describe_helpers() -> list[dict[str, Any]]:
    """The catalog's ControlNets and preprocessors for the wire, beside the files that ``describe_adapters`` lists."""
    catalog = helper_catalog()
    found = [
        describe(entry, "controlnet", entry.family, [], CONTROLNET_PLACE) for entry in catalog.controlnets.values()
    ]
    for entry in catalog.preprocessors.values():
        place = f"ComfyUI's models/{PREPROCESSORS}/{entry.name}/"
        found.append(describe(entry, "preprocessor", None, preprocessor_folders(entry.name), place))
    return found


def describe(helper: HelperModel, kind: str, family: str | None, folders: list[Path], place: str) -> dict[str, Any]:
    """One of them."""
    status = helper_status(helper, folders, place)
    return {
        "name": helper.name,
        "kind": kind,
        "family": family,
        "bytes": helper.download_bytes,
        "problem": None,
        "memory": None,
        "title": helper.title,
        "license": helper.license,
        "status": status.state,
        "reason": status.reason,
        "source": helper.repo,
    }
