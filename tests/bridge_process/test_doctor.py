"""`imagegen doctor` on a healthy state folder, and on one that was damaged in each of many ways."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bridge.broker.connection import connect
from bridge.broker.jobs import JobQueue
from bridge.contract import Job, JobKind
from bridge.service.children.child import ChildProcess
from bridge.service.children.comfyui import free_port
from bridge.service.doctor.examination import examine_folder, status_of
from bridge.service.doctor.findings import Level, Report
from bridge.service.installer import MARKER, PINNED_VERSION
from bridge.service.nats import nats_server_program
from bridge.settings import Retention, Settings
from tests.bridge_process.instance import Instance

SMALL = Retention(jobs_bytes=2**22, images_bytes=2**23)
QUEUE = "nats/jetstream/$G/streams/IMAGEGEN_JOBS"
CONSUMER = f"{QUEUE}/obs/imagegen-workers"
PINNED = f"comfyui-{PINNED_VERSION}"
LONG_AGO = time.time() - 3600


async def queue_with_jobs(settings: Settings, act: Callable[[JobQueue], object] | None = None) -> None:
    """Run a server on the state folder, with a few jobs in it."""
    port = free_port()
    command = [nats_server_program(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(settings.nats_store)]
    child = ChildProcess("nats", command, log_file=settings.logs / "nats.log", env={})
    await child.start()
    nc = await connect(f"nats://127.0.0.1:{port}", "test")
    queue = await JobQueue.open(nc, max_pending=64, retention=SMALL)
    subscription = await queue.subscribe()
    for _ in range(4):
        values: dict[str, Any] = {"prompt": "a secret castle"}
        job = Job(job_id=str(uuid4()), kind=JobKind.GENERATE, mode="m", parameters=values, submitted_at=LONG_AGO)
        await queue.submit(job)
    [msg] = await subscription.fetch(1)
    await msg.nak()
    if act is not None:
        await act(queue)  # pyright: ignore[reportGeneralTypeIssues]
    await nc.close()
    await child.stop()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder as a service leaves it."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("used") / "state")
    settings.make_directories()
    asyncio.run(queue_with_jobs(settings))
    root = settings.state_dir / PINNED
    (root / "comfy").mkdir(parents=True)
    for name in ("main.py", "server.py", "execution.py", "nodes.py", "folder_paths.py", "comfy/sd.py"):
        (root / name).write_text("x = 1\n" * 100)
    (root / MARKER).write_text("")
    (settings.workflows / "mine.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    weights = settings.models / "checkpoints" / "w.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    (settings.state_dir / "extra_model_paths.yaml").write_text("neurolux: {custom_nodes: /x}\n")
    return settings.state_dir


@pytest.fixture
def settings(used: Path, tmp_path: Path) -> Settings:
    shutil.copytree(used, tmp_path / "state", symlinks=True)
    return Settings(state_dir=tmp_path / "state")


def examined(settings: Settings, *, repair: bool) -> Report:
    return asyncio.run(examine_folder(settings, status_of(settings), repair=repair))


def overwrite(path: str, content: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda root: (root / path).write_bytes(content((root / path).read_bytes()))


def zeros(data: bytes) -> bytes:
    return bytes(len(data))


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def noise(data: bytes) -> bytes:
    return os.urandom(len(data))


def touched(path: str, text: str = "") -> Callable[[Path], object]:
    return lambda root: (root / path).write_text(text)


def replaced_by_file(path: str) -> Callable[[Path], object]:
    def replace(root: Path) -> None:
        shutil.rmtree(root / path)
        (root / path).write_text("")

    return replace


def replaced_by_folder(path: str) -> Callable[[Path], object]:
    def replace(root: Path) -> None:
        (root / path).unlink()
        (root / path).mkdir()

    return replace


def stored(subject: str, data: bytes) -> Callable[[Path], object]:
    async def publish(queue: JobQueue) -> None:
        await queue.nc.jetstream().publish(subject, data)

    return lambda root: asyncio.run(queue_with_jobs(Settings(state_dir=root), publish))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "consumer state of zeros": (overwrite(f"{CONSUMER}/o.dat", zeros), "NATS cannot read"),
    "consumer state cut off": (overwrite(f"{CONSUMER}/o.dat", half), "NATS cannot read"),
    "consumer state of noise": (overwrite(f"{CONSUMER}/o.dat", noise), "NATS cannot read"),
    "consumer without its description": (lambda root: (root / CONSUMER / "meta.inf").unlink(), "NATS cannot read"),
    "queue without its messages": (lambda root: (root / QUEUE / "msgs" / "1.blk").unlink(), "queue does not hold it"),
    "item that is no job": (stored("ai.vision.imagegen.jobs.generate", b'{"job_id": 7'), "an item of the queue cannot"),
    "state that is none": (stored("$KV.imagegen-jobs.x", b"[[["), "the state of job x cannot be read"),
    "left-over runtime file": (touched("runtime.json", '{"url": "http://127.0.0.1:8005"'), "left over"),
    "left-over temporary file": (touched(".runtime-abc"), "left over"),
    "left-over download": (lambda root: (root / f".{PINNED}-xyz" / "wheel").mkdir(parents=True), "left over"),
    "ComfyUI half unpacked": (lambda root: (root / PINNED / MARKER).unlink(), "is not complete"),
    "ComfyUI file of zeros": (overwrite(f"{PINNED}/server.py", zeros), "damaged file, server.py"),
    "ComfyUI file cut off": (touched(f"{PINNED}/comfy/sd.py", "def f(:"), "damaged file, sd.py"),
    "ComfyUI file empty": (touched(f"{PINNED}/execution.py"), "empty file, execution.py"),
    "paths file of zeros": (overwrite("extra_model_paths.yaml", zeros), "extra_model_paths.yaml is damaged"),
    "paths file that is a folder": (replaced_by_folder("extra_model_paths.yaml"), "extra_model_paths.yaml is damaged"),
    "runtime file that is a folder": (lambda root: (root / "runtime.json").mkdir(), "left over"),
    "lock that is a folder": (lambda root: (root / "service.lock").mkdir(), "is a folder, not a file"),
    "NATS store that is a file": (replaced_by_file("nats"), "is no folder"),
    "root that nobody may enter": (lambda root: root.chmod(0o000), "cannot be written"),
    "loose folder": (lambda root: root.chmod(0o755), "can be read by other users"),
    "locked folder": (lambda root: (root / "logs").chmod(0o000), "cannot be written"),
    "folder that is a file": (replaced_by_file("logs"), "is no folder"),
    "folder that is gone": (lambda root: shutil.rmtree(root / "workflows"), "is missing"),
}
BEYOND_REPAIR: dict[str, tuple[Callable[[Path], object], str]] = {
    "mode cut off": (touched("workflows/mine.json", '{"nodes": ['), "mine.json cannot be read"),
    "mode of brackets": (touched("workflows/mine.json", "[" * 100_000), "mine.json cannot be read"),
    "weights cut off": (overwrite("comfyui/models/checkpoints/w.safetensors", lambda data: data[:-4]), "is cut off"),
    "weights empty": (touched("comfyui/models/checkpoints/w.safetensors"), "is cut off"),
    "weights of brackets": (
        lambda root: (root / "comfyui/models/checkpoints/w.safetensors").write_bytes(
            struct.pack("<Q", 100_000) + b"[" * 100_000
        ),
        "damaged header",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_repaired(settings: Settings, name: str) -> None:
    damage, words = DAMAGES[name]
    damage(settings.state_dir)
    found = examined(settings, repair=False)
    assert not found.healthy
    assert [finding.text for finding in found.findings if finding.level is Level.PROBLEM and words in finding.text]
    mended = examined(settings, repair=True)
    assert mended.healthy, mended.text()
    assert any(finding.level is Level.REPAIRED for finding in mended.findings)
    again = examined(settings, repair=False)
    if MARKER not in name and "ComfyUI" not in name:  # which the next start unpacks anew
        assert again.healthy, again.text()


@pytest.mark.parametrize("name", BEYOND_REPAIR)
def test_what_only_the_user_can_replace_is_told(settings: Settings, name: str) -> None:
    damage, words = BEYOND_REPAIR[name]
    damage(settings.state_dir)
    before = {path: path.read_bytes() for path in settings.models.rglob("*") if path.is_file()}
    for repair in (False, True):
        report = examined(settings, repair=repair)
        assert [finding for finding in report.findings if finding.level is Level.PROBLEM and words in finding.text]
    assert {path: path.read_bytes() for path in settings.models.rglob("*") if path.is_file()} == before


def test_a_fifo_among_the_models_blocks_nothing(settings: Settings) -> None:
    os.mkfifo(settings.models / "checkpoints" / "pipe.safetensors")
    assert examined(settings, repair=False).healthy


def test_the_page_of_a_running_service_and_after_it(instance: Instance) -> None:
    def doctor(*options: str) -> tuple[int, str]:
        result = subprocess.run(instance.command("doctor", *options), capture_output=True, text=True, check=False)
        assert "Traceback" not in result.stderr
        return result.returncode, result.stdout

    instance.up(IMAGEGEN_TOKEN="s3cret", IMAGEGEN_WEBHOOK_SECRET="s3cret", IMAGEGEN_IMAGE_STORE_BYTES="16777216")
    instance.ready()
    token = (instance.state_dir / "nats.token").read_text().strip()
    code, page = doctor("--repair")
    assert code == 0, page
    for words in (
        "Python",
        "torch",
        "nats-server",
        "RAM",
        "ready",
        "IMAGEGEN_JOBS",
        "NATS stores",
        "nothing is repaired",
    ):
        assert words in page
    assert "s3cret" not in page
    assert token not in page
    instance.end()
    code, page = doctor("--json")
    assert code == 0, page
    assert json.loads(page)["healthy"] is True
    assert "NATS stores" in page
    assert stat.S_IMODE(instance.state_dir.stat().st_mode) == 0o700
    shutil.rmtree(instance.state_dir)
    code, page = doctor()
    assert code == 0
    assert "does not exist yet" in page
    assert not instance.state_dir.exists()


@pytest.mark.parametrize("folder", [".", "nats", "comfyui/models"])
def test_a_folder_that_its_owner_cannot_enter(instance: Instance, folder: str) -> None:
    # Root may enter every folder: it gives that right up first.
    drop = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]

    def imagegen(*arguments: str) -> tuple[int, str]:
        command = [*drop, *instance.command(*arguments)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Traceback" not in result.stderr
        return result.returncode, result.stdout + result.stderr

    Settings(state_dir=instance.state_dir).make_directories()
    place = instance.state_dir / folder
    place.chmod(0o000)
    try:
        if folder != "comfyui/models":  # which the service itself does not enter
            code, page = imagegen("setup", "--comfyui-dir", str(Path(__file__).parent / "stand_in"))
            assert (code, "imagegen doctor --repair" in page) == (1, True), page
        code, page = imagegen("doctor")
        assert code == 1, page
        code, page = imagegen("doctor", "--repair")
        assert (code, "can be written again" in page) == (0, True), page
        assert imagegen("doctor")[0] == 0
    finally:
        place.chmod(0o700)


def test_a_service_heals_a_damaged_consumer_at_its_start(instance: Instance, used: Path) -> None:
    shutil.copytree(used, instance.state_dir)
    shutil.rmtree(instance.state_dir / PINNED)
    overwrite(f"{CONSUMER}/o.dat", noise)(instance.state_dir)
    instance.up(IMAGEGEN_IMAGE_STORE_BYTES=str(SMALL.images_bytes), IMAGEGEN_JOB_STORE_BYTES=str(SMALL.jobs_bytes))
    instance.ready()
    assert "imagegen-workers: it is made anew" in instance.output
    assert list((instance.state_dir / "damaged").iterdir())
