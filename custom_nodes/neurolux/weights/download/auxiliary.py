"""Finds the files of the catalog's ControlNets, preprocessors and motion adapters, and downloads them on first use.

Like sources.py, which does the work, this module imports neither torch nor ComfyUI.
"""

from __future__ import annotations

from pathlib import Path

from ...catalog.auxiliary import AuxiliaryModel
from ...errors import DownloadFailed, WeightsMissing
from ..progress import LoadReporter
from .sources import ModelStatus, cached, download, hub_endpoint, hub_reachable, offline


def local_folder(model: AuxiliaryModel, folders: list[Path]) -> Path | None:
    """The folder that holds every file of ``model``: one of ``folders``, or the Hugging Face cache. No network."""
    for folder in folders:
        if all((folder / file).is_file() for file in model.files):
            return folder
    found = [cached(model.repo, file) for file in model.files]
    return found[0].parent if found and found[0] is not None and None not in found else None


def fetch(model: AuxiliaryModel, folders: list[Path], place: str, reporter: LoadReporter | None = None) -> Path:
    """The folder with every file of ``model``, downloaded now if necessary.

    ``place`` is the folder that errors name as the place for manual downloads. Raises WeightsMissing, AccessDenied or
    DownloadFailed.
    """
    found = local_folder(model, folders)
    if found is not None:
        return found
    if offline():
        raise WeightsMissing(
            f"{model.name} is not downloaded, and HF_HUB_OFFLINE is set; unset it once to fetch {model.repo}, or put "
            f"its files ({', '.join(model.files)}) into {place}"
        )
    download([model], reporter or LoadReporter())
    found = local_folder(model, folders)
    if found is None:
        raise DownloadFailed(
            f"{model.repo} was downloaded but lacks one of {', '.join(model.files)}; the repository may have "
            "changed: delete its folder in HF_HOME and try again"
        )
    return found


def auxiliary_status(model: AuxiliaryModel, folders: list[Path], place: str) -> ModelStatus:
    """Whether ``model`` is on this machine or can be downloaded. Probes the network for up to two seconds, at most
    once a minute."""
    if local_folder(model, folders) is not None:
        return ModelStatus("ready")
    if offline():
        return ModelStatus("missing", f"not downloaded, and HF_HUB_OFFLINE is set; unset it to fetch {model.repo}")
    if not hub_reachable():
        return ModelStatus(
            "missing",
            f"not downloaded, and {hub_endpoint()} cannot be reached from here; connect, or put its files into {place}",
        )
    return ModelStatus("downloadable")
