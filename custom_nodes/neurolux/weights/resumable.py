"""Weight files into the Hugging Face cache: an interrupted download goes on where it stopped, a wrong one is not used.

huggingface_hub starts a file anew in every process: since its PR 4228 a partial file has a name of its own and is
deleted. A shard of FLUX is 10 GB. So weights are fetched here, by its own ``http_get``, into a partial file that
stays, are compared with the Hub's sha256, and are moved to where the cache keeps its blobs; ``snapshot_download`` then
finds and links them. Nothing has a name that the cache knows before it is complete and right.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DownloadFailed
from .diffusers_folder import WEIGHTS
from .progress import LoadReporter, Rate, Transfer

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

LARGE_BYTES = 10_000_000
"""``http_get`` writes in pieces of this size: below it nothing could be resumed."""
PARTIAL_SUFFIX = ".neurolux-partial"
SHA256 = re.compile(r"[0-9a-f]{64}")
"""The Hub's etag of a file in large file storage; that of a small text file is a git hash, and shorter."""
HASH_BYTES = 8_000_000


class DownloadMeter:
    """Adds up the bytes of several files and reports them."""

    def __init__(self, total: int, reporter: LoadReporter) -> None:
        self._total = total
        self._reporter = reporter
        self._rate = Rate()
        self._finished = 0
        self._bars: dict[int, int] = {}
        self.repo = ""
        self.file = ""

    @property
    def bar(self) -> type[Any]:
        """A progress-bar class for huggingface_hub, which shows nothing.

        ``snapshot_download`` opens several: one that counts files, one or two that count bytes (received and written,
        in newer releases). The largest byte count is how far it is.
        """
        from tqdm import tqdm

        meter = self

        class ByteBar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self.counts_bytes = kwargs.get("unit") == "B"
                initial = int(kwargs.get("initial") or 0)
                kwargs.pop("name", None)
                super().__init__(*args, **{**kwargs, "disable": True})
                self.update(initial)

            def update(self, n: float | None = 1) -> bool | None:
                if self.counts_bytes and n:
                    meter.add(id(self), int(n))
                return None

        return ByteBar

    def add(self, bar: int, count: int) -> None:
        """``count`` more bytes on one bar."""
        self._bars[bar] = self._bars.get(bar, 0) + count
        done = min(self._finished + max(self._bars.values()), self._total)
        self._reporter.downloading(Transfer(self.repo, self.file, done, self._total, self._rate.of(done)))

    def finish(self) -> None:
        """The current file is complete."""
        self._finished += max(self._bars.values(), default=0)
        self._bars.clear()


def is_large(info: DryRunFileInfo) -> bool:
    """Whether to fetch ``info`` here: starting it anew would hurt, or a wrong byte in it would go unnoticed."""
    return (info.file_size or 0) > LARGE_BYTES or Path(info.filename).suffix in WEIGHTS


def fetch_large_file(repo: str, info: DryRunFileInfo, meter: DownloadMeter) -> None:
    """Fetch one file of ``repo`` to where the cache keeps blobs, continuing a partial file of an earlier attempt.

    Raises DownloadFailed for a file that is not what the Hub says it is; the next attempt then starts anew.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    meter.file = info.filename
    url = hf_hub_url(repo, info.filename, revision=info.commit_hash)
    headers = build_hf_headers()
    metadata = get_hf_file_metadata(url)
    if urllib.parse.urlsplit(metadata.location).netloc != urllib.parse.urlsplit(url).netloc:
        headers.pop("authorization", None)  # a storage server gets no token; its URL is signed
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    partial = blobs / f"{metadata.etag}{PARTIAL_SUFFIX}"
    with WeakFileLock(f"{partial}.lock"):  # another ComfyUI may fetch the same file
        with partial.open("ab") as file:
            if metadata.size is not None and file.tell() > metadata.size:
                file.truncate(0)
            http_get(
                metadata.location,
                file,
                resume_size=file.tell(),
                headers=headers,
                expected_size=metadata.size,
                tqdm_class=meter.bar,
            )
        check_content(repo, info.filename, partial, str(metadata.etag))
        partial.replace(blobs / str(metadata.etag))
    Path(f"{partial}.lock").unlink(missing_ok=True)
    meter.finish()


def check_content(repo: str, name: str, partial: Path, etag: str) -> None:
    """Delete ``partial`` and raise DownloadFailed unless it has the sha256 that its etag is."""
    if SHA256.fullmatch(etag) is None:
        return
    digest = hashlib.sha256()
    with partial.open("rb") as file:
        while piece := file.read(HASH_BYTES):
            digest.update(piece)
    if digest.hexdigest() == etag:
        return
    partial.unlink()
    raise DownloadFailed(
        f"{name} of {repo} arrived damaged: its sha256 is {digest.hexdigest()[:12]}… and should be {etag[:12]}…; the "
        "file was discarded. Run it again to fetch it anew; if it fails again, look at the proxy or mirror in between"
    )
