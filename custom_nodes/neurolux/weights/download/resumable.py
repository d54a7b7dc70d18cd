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
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import partial as bind
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import DownloadFailed
from ..diffusers_folder import WEIGHTS
from ..progress import REPORT_SECONDS, LoadReporter, Rate, Transfer

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

LARGE_BYTES = 10_000_000
"""``http_get`` writes in chunks of this size, so a smaller file cannot be resumed."""
PARTIAL_SUFFIX = ".neurolux-partial"
SHA256 = re.compile(r"[0-9a-f]{64}")
"""The Hub's etag of a file in large file storage. The etag of a small text file is a git hash, which is shorter."""
HASH_BYTES = 8_000_000
WAIT_S = 1.0
T = TypeVar("T")


class DownloadStopped(Exception):
    """In a thread that downloads: nobody waits for it any more."""


class DownloadMeter:
    """Counts the bytes of several files and reports them.

    Threads that download only count. The thread that waits for them reports, at intervals, because a report may raise:
    so an interrupt takes effect at once, also while the network is slow or silent.
    """

    def __init__(self, total: int, reporter: LoadReporter) -> None:
        self._total = total
        self._reporter = reporter
        self._rate = Rate()
        self._finished = 0
        self._bars: dict[int, int] = {}
        self._stopped = False
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
        """Count ``count`` more bytes on one bar. Raises DownloadStopped when nobody waits for them."""
        if self._stopped:
            raise DownloadStopped
        self._bars[bar] = self._bars.get(bar, 0) + count

    def watch(self, download: Callable[[], object]) -> None:
        """Run ``download`` and report until it has ended. When a report raises, the download keeps no more bytes."""
        try:
            in_thread(download, self.report)
            self.report()
        except BaseException:
            self._stopped = True
            raise

    def reached(self, count: int) -> None:
        """Another process has downloaded ``count`` bytes of the current file."""
        self._bars[0] = count
        self.report()

    def report(self) -> None:
        """Report what is counted. May raise, to stop the download."""
        done = min(self._finished + max(list(self._bars.values()), default=0), self._total)
        self._reporter.downloading(Transfer(self.repo, self.file, done, self._total, self._rate.of(done)))

    def complete(self) -> None:
        """Everything is here, also what another process has downloaded meanwhile."""
        self._finished = self._total
        self._bars.clear()
        if self._total:
            self.report()

    def finish(self) -> None:
        """The current file is complete."""
        self._finished += max(self._bars.values(), default=0)
        self._bars.clear()


def in_thread(work: Callable[[], T], waiting: Callable[[], None]) -> T:
    """What ``work`` returns or raises. Until then ``waiting`` is called every quarter of a second; it may raise.

    If it does, the thread is left to itself: requests of huggingface_hub cannot be cancelled.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # raised in the thread that waits
            done.set_exception(error)

    Thread(target=run, name="neurolux-download", daemon=True).start()
    while not wait([done], REPORT_SECONDS / 2).done:
        waiting()
    return done.result()


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
    metadata = in_thread(lambda: get_hf_file_metadata(url), meter.report)
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
                fetch = bind(
                    http_get,
                    metadata.location,
                    file,
                    resume_size=file.tell(),
                    headers=headers,
                    expected_size=metadata.size,
                    tqdm_class=meter.bar,
                )
                meter.watch(fetch)
            check_content(repo, info.filename, partial, str(metadata.etag), meter.report)
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


def check_content(repo: str, name: str, partial: Path, etag: str, at_work: Callable[[], None]) -> None:
    """Delete ``partial`` and raise DownloadFailed unless its sha256 equals its etag. ``at_work`` may raise to stop."""
    if SHA256.fullmatch(etag) is None:
        return
    digest = hashlib.sha256()
    with partial.open("rb") as file:
        while piece := file.read(HASH_BYTES):
            digest.update(piece)
            at_work()
    if digest.hexdigest() == etag:
        return
    partial.unlink()
    raise DownloadFailed(
        f"{name} of {repo} arrived damaged: its sha256 is {digest.hexdigest()[:12]}… and should be {etag[:12]}…; the "
        "file was discarded. Run it again to download it from the start; if that fails too, check the proxy or mirror"
    )
