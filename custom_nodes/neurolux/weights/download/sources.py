"""Finds a model's files: in a folder on this machine, or in the Hugging Face cache, which is filled on first use.

Downloads go to ``HF_HOME``, like those of every Hugging Face tool. They fetch only the files that the pipeline needs,
resume after an interruption, and report progress. This module imports neither torch nor ComfyUI.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...catalog.models import FolderSource, Model, RepoFiles, RepoSource, SingleFilesSource
from ...errors import AccessDenied, DownloadFailed, NeuroLuxError, WeightsMissing
from ..diffusers_folder import missing_files
from ..progress import LoadReporter
from .resumable import DownloadMeter, fetch_large_file, in_thread, is_large

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

REACHABLE_TIMEOUT_S = 2.0
REACHABLE_CACHE_S = 60.0
DISK_RESERVE_BYTES = 1_000_000_000
UNREACHABLE = frozenset({"ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError", "OfflineModeIsEnabled"})
"""HTTP errors that mean "host unreachable", by class name: the HTTP library depends on the huggingface_hub version."""
_reachable: tuple[float, bool] | None = None


@dataclass(frozen=True)
class ModelStatus:
    """Whether a model can be used: ``ready``, ``downloadable`` on first use, or ``missing`` with a reason."""

    state: Literal["ready", "downloadable", "missing"]
    reason: str | None = None


@dataclass(frozen=True)
class ResolvedFiles:
    """Local paths of one model: the pipeline folder and files that replace some of its components, or single files."""

    pipeline: Path | None = None
    checkpoint: Path | None = None
    vae: Path | None = None
    single: SingleFilesSource | None = None


def is_here(model: Model) -> bool:
    """Whether every file of ``model`` is on this machine. Uses no network."""
    return local_files(model, model.variant(0)) is not None


def local_files(model: Model, variant: int | None) -> ResolvedFiles | None:
    """The model's files if all are on this machine: in its folder, in the Hugging Face cache, or single files."""
    source = model.source
    if isinstance(source, FolderSource):
        return None if missing_files(source.path) else ResolvedFiles(source.path)
    if isinstance(source, SingleFilesSource):
        return ResolvedFiles(single=source) if all(path.is_file() for path in source.files) else None
    found = cached_files(model, variant)
    if found is None and variant in model.local:
        return ResolvedFiles(single=model.local[variant])
    return found


def model_status(model: Model) -> ModelStatus:
    """Whether ``model`` can be used. Probes the network for up to two seconds, at most once a minute."""
    source = model.source
    if is_here(model):
        return ModelStatus("ready")
    if isinstance(source, FolderSource):
        missing = missing_files(source.path)
        return ModelStatus("missing", f"{source.path} lacks {', '.join(missing[:3])}; copy the whole diffusers folder")
    if isinstance(source, SingleFilesSource):
        gone = next((path for path in source.files if not path.is_file()), None)
        return ModelStatus("missing", f"{gone} no longer exists; put it back")
    if offline():
        return ModelStatus("missing", f"not downloaded, and HF_HUB_OFFLINE is set; unset it to fetch {source.repo}")
    if needs_account(model):
        return ModelStatus("missing", gated_remedy(source.repo))
    if not hub_reachable():
        return ModelStatus(
            "missing",
            f"not downloaded, and {hub_endpoint()} cannot be reached from here; connect, or put the diffusers folder "
            "into ComfyUI's models/diffusers/",
        )
    return ModelStatus("downloadable")


def needs_account(model: Model) -> bool:
    """Whether the weights can be fetched only with an account, and nobody is logged in."""
    return isinstance(model.source, RepoSource) and model.source.gated and not token()


def resolve(model: Model, variant: int | None, reporter: LoadReporter | None = None) -> ResolvedFiles:
    """Local paths of ``model``. Downloads whatever is missing.

    Raises WeightsMissing, AccessDenied or DownloadFailed. ``variant`` is the checkpoint's number of steps.
    """
    source = model.source
    found = local_files(model, variant)
    if found is not None:
        return found
    if isinstance(source, FolderSource):
        missing = missing_files(source.path)
        raise WeightsMissing(
            f"model {model.name!r}: {source.path} lacks {', '.join(missing)}; copy the whole diffusers folder"
        )
    if isinstance(source, SingleFilesSource):
        raise WeightsMissing(f"model {model.name!r}: {model_status(model).reason}")
    if offline():
        raise WeightsMissing(
            f"model {model.name!r} is not downloaded, and HF_HUB_OFFLINE is set; unset it once to fetch {source.repo}"
        )
    download(list(needed_files(model, variant)), reporter or LoadReporter())
    found = cached_files(model, variant)
    if found is None:
        raise DownloadFailed(
            f"model {model.name!r}: {source.repo} was downloaded but lacks files that the pipeline needs; "
            "the repository may have changed: delete its folder in HF_HOME and try again"
        )
    return found


def needed_files(model: Model, variant: int | None) -> Iterator[RepoFiles]:
    """Everything to download for ``model``, by repository."""
    assert isinstance(model.source, RepoSource)
    yield model.source
    if variant is not None and variant in model.checkpoints:
        checkpoint = model.checkpoints[variant]
        yield RepoFiles(checkpoint.repo, (checkpoint.file,))
    if model.vae is not None:
        yield model.vae


def cached_files(model: Model, variant: int | None) -> ResolvedFiles | None:
    """The model's files in the Hugging Face cache, or None if one is missing."""
    assert isinstance(model.source, RepoSource)
    index = cached(model.source.repo, "model_index.json")
    if index is None:
        return None
    checkpoint = vae = None
    replaced: set[str] = set()
    if variant is not None and variant in model.checkpoints:
        replaced.add(model.checkpoints[variant].component)
        checkpoint = cached(model.checkpoints[variant].repo, model.checkpoints[variant].file)
        if checkpoint is None:
            return None
    if model.vae is not None:
        replaced.add("vae")
        files = [cached(model.vae.repo, file) for file in model.vae.files]
        if not files or files[0] is None or None in files:
            return None
        vae = files[0].parent
    missing = missing_files(index.parent, without_weights=frozenset(replaced))
    if model.vae is not None:
        missing = [file for file in missing if not file.startswith("vae/")]
    return None if missing else ResolvedFiles(index.parent, checkpoint, vae)


def cached(repo: str, file: str) -> Path | None:
    """The newest cached copy of one file of ``repo``."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def download(parts: Sequence[RepoFiles], reporter: LoadReporter) -> None:
    """Download the files of ``parts`` into the Hugging Face cache. Files that are already there are skipped."""
    from huggingface_hub import snapshot_download

    missing: dict[str, list[DryRunFileInfo]] = {}
    for part in parts:
        with download_errors(part.repo):
            plan = bind(snapshot_download, part.repo, allow_patterns=list(part.files), dry_run=True)
            planned = in_thread(plan, reporter.check)
        missing[part.repo] = [info for info in planned if info.will_download]
    total = sum(info.file_size or 0 for infos in missing.values() for info in infos)
    check_disk(" and ".join(repo for repo, infos in missing.items() if infos), total)
    meter = DownloadMeter(total, reporter)
    for part in parts:
        meter.repo = part.repo
        with download_errors(part.repo):
            for info in filter(is_large, missing[part.repo]):
                fetch_large_file(part.repo, info, meter)
            meter.file = "configuration"
            meter.watch(bind(snapshot_download, part.repo, allow_patterns=list(part.files), tqdm_class=meter.bar))
            meter.finish()
    meter.complete()


def check_disk(repo: str, needed: int) -> None:
    """Raise DownloadFailed unless ``needed`` bytes fit on the cache's disk."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + DISK_RESERVE_BYTES > free:
        raise DownloadFailed(
            f"{repo} needs {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "free some space, or set HF_HOME to a larger disk"
        )


@contextmanager
def download_errors(repo: str) -> Iterator[None]:
    """Translate huggingface_hub's errors into this pack's errors, which name the remedy."""
    from huggingface_hub.errors import HfHubHTTPError

    # The base class of the HTTP library's errors: that of httpx or httpx2.
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except (OSError, http_error) as error:
        raise explained(repo, error) from error


def explained(repo: str, error: BaseException) -> NeuroLuxError:
    """``error`` as an error for the user. Looks at its causes too: a refusal or an outage is often among them."""
    from huggingface_hub import errors as hub

    causes = list(chain_of(error))
    statuses = {getattr(getattr(cause, "response", None), "status_code", None) for cause in causes}
    if any(isinstance(cause, hub.GatedRepoError) for cause in causes) or statuses & {401, 403}:
        return AccessDenied(gated_remedy(repo))
    if any(isinstance(cause, hub.RepositoryNotFoundError) for cause in causes):
        return AccessDenied(
            f"{repo} does not exist or is private; log in with `hf auth login`, or set HF_TOKEN, and try again"
        )
    if any(getattr(cause, "errno", None) == errno.ENOSPC for cause in causes):
        return DownloadFailed(f"the disk filled up while downloading {repo}; free some space and run it again")
    if any(type(cause).__name__ in UNREACHABLE for cause in causes):
        return DownloadFailed(
            f"{repo} is not downloaded and {hub_endpoint()} cannot be reached; check the network, "
            "or put the diffusers folder into ComfyUI's models/diffusers/"
        )
    return DownloadFailed(f"downloading {repo} failed ({error}); run it again, it resumes")


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The exception, then its causes."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def gated_remedy(repo: str) -> str:
    """The text that says how to get access to a gated repository."""
    return (
        f"{repo} is gated: accept its licence at {hub_endpoint()}/{repo}, then log in with `hf auth login` "
        "or set HF_TOKEN, and try again"
    )


def token() -> str | None:
    """The user's Hugging Face token, or None."""
    from huggingface_hub import get_token

    return get_token()


def offline() -> bool:
    """Whether the user has disabled network access (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def hub_endpoint() -> str:
    """The URL of the Hub, or of the mirror in HF_ENDPOINT."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def hub_reachable() -> bool:
    """Whether the Hub accepts a TCP connection. Probed at most once a minute. With a proxy, it counts as reachable."""
    global _reachable
    if urllib.request.getproxies().get("https") or os.environ.get("ALL_PROXY"):
        return True
    now = time.monotonic()
    if _reachable is None or now - _reachable[0] > REACHABLE_CACHE_S:
        endpoint = urllib.parse.urlsplit(hub_endpoint())
        port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
        try:
            with socket.create_connection((endpoint.hostname or "", port), timeout=REACHABLE_TIMEOUT_S):
                _reachable = (now, True)
        except OSError:
            _reachable = (now, False)
    return _reachable[1]
