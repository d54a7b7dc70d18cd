"""Downloads: only what is needed, with progress, resumed; and what each failure tells the user to do.

Each runs in a process of its own, because huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pack.fake_hub import FakeHub, running_hub

CUSTOM_NODES = Path(__file__).parents[3] / "custom_nodes"
FETCH = """
import json, os, sys, time
from dataclasses import replace
from neurolux.catalog.reading import read_catalog
from neurolux.errors import NeuroLuxError
from neurolux.weights.download import sources
from neurolux.weights.progress import LoadReporter

model = read_catalog().get(sys.argv[1])
progress, result = [], {}


class Reporter(LoadReporter):
    def check(self):
        if sys.argv[2].startswith("interrupt") and time.monotonic() > interrupted_at:
            raise KeyboardInterrupt

    def downloading(self, transfer):
        self.check()
        progress.append((transfer.done, transfer.total, transfer.repo, transfer.file, transfer.bytes_per_second))


started = time.monotonic()
interrupted_at = started + 1
if sys.argv[2] == "small-disk":
    sources.DISK_RESERVE_BYTES = 10**18
if sys.argv[2] == "full-disk":
    import errno
    from huggingface_hub import file_download

    def http_get(url, file, **_):
        file.write(bytes(1000))
        raise OSError(errno.ENOSPC, "No space left on device")

    file_download.http_get = http_get
try:
    if sys.argv[2] == "status":
        status = sources.model_status(model)
        result = {"status": status.state, "reason": status.reason}
    else:
        found = sources.resolve(model, model.variant(0), Reporter())
        result = {"pipeline": str(found.pipeline)}
except KeyboardInterrupt:
    result = {"seconds": time.monotonic() - interrupted_at}
except NeuroLuxError as error:
    result = {"error": type(error).__name__, "message": str(error)}
print(json.dumps({**result, "progress": progress}), flush=True)
os._exit(0)  # not after the threads of a download that was given up
"""


@dataclass(frozen=True)
class Fetcher:
    """Resolves a catalog model against a fake hub, with a cache of its own."""

    hub: FakeHub
    home: Path

    def __call__(self, action: str = "fetch", model: str = "flux-schnell", **environment: str) -> dict[str, object]:
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "http", "HTTP"))}
        variables |= {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.url, "PYTHONPATH": str(CUSTOM_NODES)}
        variables |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_x", **environment}
        command = [sys.executable, "-c", FETCH, model, action]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def fetch(tiny_models: dict[str, Path], tmp_path: Path) -> Iterator[Fetcher]:
    """A hub that has the tiny FLUX in every repository."""
    with running_hub(tiny_models["tiny-flux-schnell"]) as hub:
        yield Fetcher(hub, tmp_path / "hf")


def test_first_use_downloads_and_reports_bytes(fetch: Fetcher, tiny_models: dict[str, Path]) -> None:
    assert fetch("status") == {"status": "downloadable", "reason": None, "progress": []}
    result = fetch()
    folder = Path(str(result["pipeline"]))
    needed = {path.name for path in tiny_models["tiny-flux-schnell"].rglob("*") if path.is_file()}
    assert {path.name for path in folder.rglob("*") if path.is_file()} == needed
    progress = result["progress"]
    assert isinstance(progress, list)
    assert progress[-1][0] == progress[-1][1] > 500_000
    assert [done for done, *_ in progress] == sorted(done for done, *_ in progress)
    assert {total for _, total, *_ in progress} == {progress[-1][1]}
    assert {repo for _, _, repo, *_ in progress} == {"black-forest-labs/FLUX.1-schnell"}
    assert "transformer/diffusion_pytorch_model.safetensors" in {file for _, _, _, file, _ in progress}
    assert progress[-1][-1] > 0

    assert fetch("status")["status"] == "ready"
    fetch.hub.requested.clear()
    assert fetch()["pipeline"] == str(folder)
    assert fetch.hub.requested == []


def test_downloaded_files_work_without_a_network(fetch: Fetcher) -> None:
    folder = fetch()["pipeline"]
    assert fetch(HF_HUB_OFFLINE="1")["pipeline"] == folder
    assert fetch("status", HF_HUB_OFFLINE="1")["status"] == "ready"
    assert fetch(HF_ENDPOINT="http://127.0.0.1:9")["pipeline"] == folder


def test_a_gated_repository_names_the_remedy(fetch: Fetcher) -> None:
    fetch.hub.refusal = (403, "GatedRepo")
    result = fetch()
    assert result["error"] == "AccessDenied"
    remedy = f"accept its licence at {fetch.hub.url}/black-forest-labs/FLUX.1-schnell, then log in with `hf auth login`"
    assert remedy in str(result["message"])
    assert "HF_TOKEN" in str(result["message"])


@pytest.mark.parametrize(("status", "code"), [(401, ""), (401, "RepoNotFound"), (403, "")])
def test_a_refused_repository_asks_for_a_login(fetch: Fetcher, status: int, code: str) -> None:
    fetch.hub.refusal = (status, code)
    result = fetch()
    assert result["error"] == "AccessDenied"
    assert "hf auth login" in str(result["message"])


def test_a_disk_that_fills_up_says_so(fetch: Fetcher) -> None:
    result = fetch("full-disk")
    assert result["error"] == "DownloadFailed"
    assert "the disk filled up while downloading black-forest-labs/FLUX.1-schnell" in str(result["message"])
    assert fetch("status")["status"] == "downloadable"


def test_a_file_with_a_wrong_checksum_is_never_used(fetch: Fetcher, tmp_path: Path) -> None:
    name = "transformer/diffusion_pytorch_model.safetensors"
    fetch.hub.damaged = name
    result = fetch()
    assert result["error"] == "DownloadFailed"
    assert f"{name} of black-forest-labs/FLUX.1-schnell arrived damaged: its sha256 is" in str(result["message"])
    assert "the file was discarded" in str(result["message"])
    assert fetch("status")["status"] == "downloadable"
    sizes = {path.stat().st_size for path in (tmp_path / "hf").rglob("*") if path.is_file()}
    assert (fetch.hub.folder / name).stat().st_size not in sizes

    fetch.hub.damaged = None
    fetch.hub.requested.clear()
    folder = Path(str(fetch()["pipeline"]))
    assert (folder / name).read_bytes() == (fetch.hub.folder / name).read_bytes()
    assert f"{name}@0" in fetch.hub.requested


def test_a_gated_model_without_a_token_is_missing(fetch: Fetcher) -> None:
    status = fetch("status", "flux-dev", HF_TOKEN="")
    assert status["status"] == "missing"
    assert "accept its licence" in str(status["reason"])
    assert fetch("status", "flux-dev", HF_TOKEN="hf_x")["status"] == "downloadable"


def test_offline_says_so(fetch: Fetcher) -> None:
    result = fetch(HF_HUB_OFFLINE="1")
    assert result["error"] == "WeightsMissing"
    assert "HF_HUB_OFFLINE is set; unset it" in str(result["message"])
    assert fetch("status", HF_HUB_OFFLINE="1")["status"] == "missing"


def test_an_unreachable_hub_says_so(fetch: Fetcher) -> None:
    result = fetch(HF_ENDPOINT="http://127.0.0.1:9")
    assert result["error"] == "DownloadFailed"
    assert "http://127.0.0.1:9 cannot be reached; check the network" in str(result["message"])
    status = fetch("status", HF_ENDPOINT="http://127.0.0.1:9")
    assert status["status"] == "missing"
    assert "cannot be reached from here" in str(status["reason"])


def test_a_small_disk_is_noticed_before_the_download(fetch: Fetcher) -> None:
    result = fetch("small-disk")
    assert result["error"] == "DownloadFailed"
    assert "GB free; free some space, or set HF_HOME to a larger disk" in str(result["message"])
    assert not any(name.startswith("transformer/diffusion") for name in fetch.hub.requested)


def test_of_three_processes_one_downloads_and_the_others_wait(fetch: Fetcher) -> None:
    """The locks stay where they are: who waits for a deleted one and who makes it anew would both go in."""
    name = "transformer/diffusion_pytorch_model.safetensors"
    alone = fetch()
    before = fetch.hub.asked_for.count(name) - 1  # how often one process asks for a file until it has it
    shutil.rmtree(fetch.home)
    fetch.hub.requested.clear()
    fetch.hub.asked_for.clear()
    fetch.hub.held_back = (name, 3 * before)
    with ThreadPoolExecutor(3) as pool:
        results = [made.result() for made in [pool.submit(fetch) for _ in range(3)]]
    assert {Path(str(result["pipeline"])).name for result in results} == {Path(str(alone["pipeline"])).name}
    weights = [request for request in fetch.hub.requested if ".safetensors@" in request]
    assert sorted(weights) == sorted({*weights})  # each from its start, and once
    assert all(request.endswith("@0") for request in weights)
    for result in results:
        assert result["progress"][-1][0] == result["progress"][-1][1]  # pyright: ignore[reportIndexIssue]
    locks = [path for path in fetch.home.rglob("*.lock") if path.is_file()]
    assert len(locks) >= len(weights)


def test_a_dropped_download_resumes(fetch: Fetcher, tmp_path: Path) -> None:
    fetch.hub.folder = shutil.copytree(fetch.hub.folder, tmp_path / "large")
    transformer = fetch.hub.folder / "transformer"
    content = os.urandom(24_000_000)  # huggingface_hub writes pieces of 10 MB
    (transformer / "more.safetensors").write_bytes(content)
    index = {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "more.safetensors"}}
    (transformer / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    fetch.hub.broken_after = 12_000_000
    result = fetch(HF_HUB_DOWNLOAD_TIMEOUT="2")
    assert result["error"] == "DownloadFailed"
    assert "run it again, it resumes" in str(result["message"])
    assert fetch("status")["status"] == "downloadable"
    fetch.hub.broken_after = None
    fetch.hub.requested.clear()
    folder = Path(str(fetch()["pipeline"]))
    assert (folder / "transformer" / "more.safetensors").read_bytes() == content
    resumed = [name for name in fetch.hub.requested if not name.endswith("@0")]
    assert resumed
    assert all(name.startswith("transformer/more.safetensors@") for name in resumed)


@pytest.mark.parametrize(
    ("silent_after", "silent_at"),
    [
        pytest.param(None, "/api/models/", id="before the list of files"),
        pytest.param(None, "/resolve/", id="before the first file"),
        pytest.param(0, None, id="before the first byte of a file"),
    ],
)
def test_a_download_is_cancelled_at_once_while_the_network_is_silent(
    fetch: Fetcher, silent_after: int | None, silent_at: str | None
) -> None:
    fetch.hub.silent_after, fetch.hub.silent_at = silent_after, silent_at
    assert 0 <= float(str(fetch("interrupt")["seconds"])) < 2.0


def test_a_cancelled_download_goes_on_later(fetch: Fetcher) -> None:
    fetch.hub.silent_after = 1000
    assert "seconds" in fetch("interrupt")
    fetch.hub.silent_after = None
    assert "pipeline" in fetch()
