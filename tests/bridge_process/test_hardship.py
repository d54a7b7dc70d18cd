"""`imagegen up` when the machine treats it badly: children freeze, the kernel kills, the disk fills, others look on."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import nats.errors
import psutil
import pytest

from bridge.service.children.keeper import MAX_DEATHS
from tests.bridge_process.instance import CHILDREN, Instance
from tests.faults.disk import MIB, small_disk

OWN = sorted(CHILDREN - {"supervisor"})
SMALL: dict[str, Any] = {"IMAGEGEN_IMAGE_STORE_BYTES": str(16 * MIB), "IMAGEGEN_JOB_STORE_BYTES": str(8 * MIB)}


def said(instance: Instance, text: str, timeout_s: float = 40) -> None:
    """Wait until the terminal shows the text."""
    instance.until(lambda _: text in instance.output, timeout_s)


def test_every_frozen_child_is_replaced(instance: Instance) -> None:
    instance.up()
    before = instance.ready()
    for name in OWN:
        os.kill(before.pids[name], signal.SIGSTOP)
    after = instance.until(
        lambda status: status.ready and all(status.pids.get(name, 0) != before.pids[name] for name in OWN), 90
    )
    assert set(after.pids) == CHILDREN
    for name in OWN:
        assert f"{name} does not answer any more and was stopped by a signal; killing it" in instance.output


def test_a_comfyui_that_the_kernel_kills_in_its_first_start_is_started_again(
    instance: Instance, tmp_path: Path
) -> None:
    instance.up(STAND_IN_KILLED_UNLESS=str(tmp_path / "killed"))
    instance.ready()
    assert "comfyui ended with signal 9; restarting it (the kernel kills when memory runs out)" in instance.output


def test_a_child_that_keeps_dying_is_told_with_its_last_lines_and_gets_more_time(
    instance: Instance, tmp_path: Path
) -> None:
    ill = tmp_path / "ill"
    ill.touch()
    instance.up(STAND_IN_DIES_WHILE=str(ill))
    said(instance, f"comfyui ended {MAX_DEATHS} times in a row, last with code 7; trying again in 5 s")
    assert "the stand-in dies" in instance.output
    assert str(instance.state_dir / "logs" / "comfyui.log") in instance.output
    ill.unlink()
    instance.ready()
    assert "Traceback" not in instance.output


def test_a_disk_that_fills_and_is_freed_costs_nothing_but_time(
    instances: Callable[[str], Instance], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 400) as disk:
        instance = instances("disk/state")
        instance.log = tmp_path / "up.out"
        instance.up(**SMALL, IMAGEGEN_MIN_FREE_DISK_BYTES=str(32 * MIB))
        before = instance.ready()
        disk.fill()
        instance.until(lambda status: not status.ready and "disk of" in status.message)
        assert str(instance.state_dir / "nats") in instance.status().message
        for name in OWN:
            if name != "nats":
                os.kill(before.pids[name], signal.SIGKILL)
        said(instance, "runtime.json cannot be written (No space left on device)")
        said(instance, f"NATS cannot store: the disk of {instance.state_dir / 'nats'} has 0 bytes free", 60)
        disk.release()
        said(instance, "NATS does not store any more, restarting it", 60)
        after = instance.until(lambda status: status.ready, 90)
        assert set(after.pids) == CHILDREN
        assert after.pids["supervisor"] == before.pids["supervisor"]
        assert "Traceback" not in instance.output
        instance.end()


def test_a_start_on_a_full_disk_is_refused_with_its_name(instances: Callable[[str], Instance], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        instance = instances("disk/state")
        instance.log = tmp_path / "up.out"
        disk.fill(leave=64 * 1024)
        output = instance.fails()
        assert f"the disk of {instance.state_dir} has" in output
        assert len(output.splitlines()) == 1


# -- other users of the machine ------------------------------------------------------------------------------------


async def test_with_a_token_nats_asks_for_one_too(instance: Instance) -> None:
    instance.up(IMAGEGEN_TOKEN="s3cret")
    status = instance.ready()
    assert status.nats_url
    file = instance.state_dir / "nats.token"
    comfyui_file = instance.state_dir / "comfyui.token"
    for private in (file, instance.state_dir / "nats.conf", comfyui_file):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    with pytest.raises(nats.errors.Error, match="(?i)authorization"):
        await nats.connect(status.nats_url, allow_reconnect=False)
    nc = await nats.connect(status.nats_url, token=file.read_text().strip())
    assert (await nc.request("ai.vision.imagegen.model_info", b"", timeout=10)).data
    await nc.close()
    for name in ("comfyui", "worker"):  # ComfyUI's middleware demands it, the worker sends it
        assert psutil.Process(status.pids[name]).environ()["NEUROLUX_COMFYUI_TOKEN_FILE"] == str(comfyui_file)
    assert len({file.read_text(), comfyui_file.read_text()}) == 2
    instance.end()
    instance.up()
    status = instance.ready()
    assert status.nats_url
    await (await nats.connect(status.nats_url)).close()  # Without a token, this machine's programs are trusted.
    assert not file.exists()
    assert not comfyui_file.exists()


SECRETS: dict[str, Any] = {
    "IMAGEGEN_TOKEN": "s3cret-token",
    "IMAGEGEN_WEBHOOK_SECRET": "s3cret-webhook",
    "IMAGEGEN_NATS_PASSWORD": "s3cret-password",
    "IMAGEGEN_NATS_USER": "someone",
    "IMAGEGEN_S3_SECRET_ACCESS_KEY_OF_ANOTHER_VERSION": "s3cret-key",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "api-key=s3cret-header",
}


def test_comfyui_and_nats_inherit_no_secret(instance: Instance) -> None:
    instance.up(**SECRETS, HF_TOKEN="hf-for-downloads")
    status = instance.ready()
    for name in ("comfyui", "nats"):
        environment = psutil.Process(status.pids[name]).environ()
        assert not [value for value in environment.values() if "s3cret" in value], name
    assert psutil.Process(status.pids["comfyui"]).environ()["HF_TOKEN"] == "hf-for-downloads"


@pytest.mark.parametrize(
    ("mode", "content", "outcome"),
    [
        (0o755, [], "tightened"),
        (0o777, [], "tightened"),
        (0o750, ["logs", "nats.conf", "comfyui-0.3.75"], "tightened"),
        (0o700, ["my-thesis.txt"], "left"),
        (0o755, ["my-thesis.txt"], "inside"),
        (0o777, ["my-thesis.txt"], "refused"),
        (0o1777, ["my-thesis.txt"], "refused"),
    ],
)
def test_a_state_folder_that_others_can_enter_is_closed_or_refused(
    instance: Instance, mode: int, content: list[str], outcome: str
) -> None:
    root = instance.state_dir
    root.mkdir()
    for name in content:
        (root / name).touch() if "." in name and not name.startswith("comfyui") else (root / name).mkdir()
    root.chmod(mode)
    (root / "nats").mkdir(mode=0o755)
    command = [*instance.command("setup"), "--comfyui-dir", str(Path(__file__).parent / "stand_in")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    now = stat.S_IMODE(root.stat().st_mode)
    if outcome == "refused":
        assert result.returncode == 1
        assert f"chmod 700 {root}" in result.stderr
        assert now == mode
        return
    assert result.returncode == 0, result.stderr
    assert now == (0o700 if outcome == "tightened" else mode)
    assert ("only its owner may use it now" in result.stdout) == (outcome == "tightened")
    if outcome == "inside":
        assert stat.S_IMODE((root / "nats").stat().st_mode) == 0o700
