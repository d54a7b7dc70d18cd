"""Downloads weight files into the Hugging Face cache. Interrupted downloads resume, and files are verified.

huggingface_hub restarts each file in every process: since its PR 4228, each partial file has a unique name and is
deleted. A shard of FLUX is 10 GB. So this module downloads weights with the library's own ``http_get`` into a partial
file that stays, compares it with the Hub's sha256, and moves it to the blobs of the cache, where ``snapshot_download``
finds and links it. No file gets a name that the cache knows before it is complete and verified.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DownloadFailed
from .diffusers_folder import WEIGHTS
from .progress import LoadReporter, Rate, Transfer

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

LARGE_BYTES = 10_000_000
"""``http_get`` writes in chunks of this size, so a smaller file cannot be resumed."""
PARTIAL_SUFFIX = ".neurolux-partial"
SHA256 = re.compile(r"[0-9a-f]{64}")
"""The Hub's etag of a file in large file storage. The etag of a small text file is a git hash, which is shorter."""
HASH_BYTES = 8_000_000
WAIT_S = 1.0


class DownloadMeter:
    """Counts the bytes of several files and reports them."""

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
        """A progress-bar class for huggingface_hub that displays nothing.

        ``snapshot_download`` opens several bars: one that counts files, and one or two that count bytes (received and
        written, in newer releases). The largest byte count is the progress.
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
        """Count ``count`` more bytes on one bar."""
        self._bars[bar] = self._bars.get(bar, 0) + count
        self._report()

    def reached(self, count: int) -> None:
        """Another process has downloaded ``count`` bytes of the current file."""
        self._bars[0] = count
        self._report()

    def _report(self) -> None:
        done = min(self._finished + max(self._bars.values()), self._total)
        self._reporter.downloading(Transfer(self.repo, self.file, done, self._total, self._rate.of(done)))

    def finish(self) -> None:
        """The current file is complete."""
        self._finished += max(self._bars.values(), default=0)
        self._bars.clear()


def is_large(info: DryRunFileInfo) -> bool:
    """Whether to download ``info`` here: it is too large to restart, or it holds weights, which must be verified."""
    return (info.file_size or 0) > LARGE_BYTES or Path(info.filename).suffix in WEIGHTS


def fetch_large_file(repo: str, info: DryRunFileInfo, meter: DownloadMeter) -> None:
    """Download one file of ``repo`` to the blobs of the cache, resuming the partial file of an earlier attempt.

    Raises DownloadFailed for a file whose sha256 is wrong. The next attempt then starts over.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    meter.file = info.filename
    url = hf_hub_url(repo, info.filename, revision=info.commit_hash)
    headers = build_hf_headers()
    metadata = get_hf_file_metadata(url)
    if urllib.parse.urlsplit(metadata.location).netloc != urllib.parse.urlsplit(url).netloc:
        headers.pop("authorization", None)  # do not send the token to a storage server; its URL is signed
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    partial = blobs / f"{metadata.etag}{PARTIAL_SUFFIX}"
    blob = blobs / str(metadata.etag)

    def waiting() -> None:
        with suppress(FileNotFoundError):
            meter.reached(partial.stat().st_size)

    with alone(lock_of(repo, str(metadata.etag)), waiting):  # another ComfyUI may download the same file
        if blob.exists():  # it has just done so
            meter.reached(blob.stat().st_size)
        else:
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
            partial.replace(blob)
    meter.finish()


def lock_of(repo: str, etag: str) -> Path:
    """The lock file of a blob: that of huggingface_hub itself, so that its downloads are waited for as well.

    It is never deleted: who waits for a deleted lock, and who makes a new one of its name, would both go in.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / ".locks" / repo_folder_name(repo_id=repo, repo_type="model")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{etag}.lock"


@contextmanager
def alone(lock: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold ``lock``. Until another process gives it back, ``waiting`` is called every second; it may raise."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    with ExitStack() as held:
        while True:
            try:
                held.enter_context(WeakFileLock(lock, timeout=WAIT_S))
                break
            except Timeout:
                waiting()
        yield


def check_content(repo: str, name: str, partial: Path, etag: str) -> None:
    """Delete ``partial`` and raise DownloadFailed unless its sha256 equals its etag."""
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
        "file was discarded. Run it again to download it from the start; if that fails too, check the proxy or mirror"
    )
