"""docs/SCALING.md, followed word by word: its server, its permissions, its commands, two gateways, two workers."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bridge.broker.connection import connect
from bridge.broker.jobs import JobQueue
from bridge.client import ImageGenClient
from bridge.contract import Job, JobKind, JobState, JobStatus
from bridge.service.children.comfyui import free_port
from bridge.service.installer import Installation
from bridge.settings import Access
from tests.faults.cluster import Cluster, Process, ended, submit, until
from tests.faults.test_access import write_credentials

PAGE = (Path(__file__).parents[2] / "docs" / "SCALING.md").read_text(encoding="utf-8")
[SERVER] = re.findall(r"^```hcl\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = next(
    block for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "export" in block
)
OLD_JOBS = 3000
"""More than JetStream sends before it waits for an answer to its flow control."""
TOKEN = "a-token-of-the-page"


def allowed(verb: str) -> list[str]:
    """The subjects that the page's user may publish to, or subscribe to."""
    [listed] = re.findall(rf"{verb} = \[(.*?)\]", SERVER)
    return re.findall(r'"(.*?)"', listed)


class Fleet:
    """What the page tells to start. `place` puts the page's paths and addresses where this machine has them."""

    def __init__(self, folder: Path, installation: Installation, certificates: Path, *, creds: bool) -> None:
        self.cluster = Cluster(folder, installation)
        self.folder, self.certificates, self.creds = folder, certificates, creds
        (folder / "tokens").write_text(TOKEN + "\n")
        self.access = Access(user="imagegen", password="change-me", tls_ca=certificates / "ca.pem")
        server = self.place(SERVER)
        if creds:
            lists = {"pub": {"allow": allowed("publish")}, "sub": {"allow": allowed("subscribe")}}
            path, operator = write_credentials(folder / "worker.creds", **lists)
            self.access = Access(credentials=path, tls_ca=certificates / "ca.pem")
            preload = "\n".join(f"  {key}: {value}" for key, value in operator.pop("resolver_preload").items())
            rest = "\n".join(f"{key}: {value}" for key, value in operator.items())
            server = server[: server.index("authorization {")] + f"{rest}\nresolver_preload {{\n{preload}\n}}\n"
        nats = self.cluster.processes["nats"]
        nats.kill()
        (folder / "nats.conf").write_text(server)
        nats.start()
        self.cluster.wait_nats()

    def place(self, text: str) -> str:
        for old, new in {
            "port = 4222": f'host = "127.0.0.1"\nport = {self.cluster.nats_port}',
            "/var/lib/nats": str(self.folder / "nats"),
            "/etc/nats": str(self.certificates),
            "/etc/imagegen/ca.pem": str(self.certificates / "ca.pem"),
            "/etc/imagegen": str(self.folder),
        }.items():
            text = text.replace(old, new)
        return re.sub(r"nats-\d:4222", f"127.0.0.1:{self.cluster.nats_port}", text)

    def run(self, name: str, command: str, **env: str) -> Process:
        """Run the command of the page that begins so, after its exports."""
        [line] = [line for line in COMMANDS.splitlines() if line.startswith(command + " ")]
        exports = [line for line in COMMANDS.splitlines() if line.startswith("export ")]
        script = self.place("\n".join([*exports, "exec " + line]))
        if comfyui := env.pop("COMFYUI", ""):
            script = script.replace("http://127.0.0.1:8188", comfyui)
        if not self.creds:  # as the page says below its server
            script = re.sub(r"IMAGEGEN_NATS_CREDENTIALS=\S+", "IMAGEGEN_NATS_USER=imagegen", script)
            env["IMAGEGEN_NATS_PASSWORD"] = "change-me"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        small = {"IMAGEGEN_IMAGE_STORE_BYTES": str(2**24), "IMAGEGEN_JOB_STORE_BYTES": str(2**24)}
        env = {"PATH": path, "IMAGEGEN_STATE_DIR": str(self.folder), **small, **env}
        process = self.cluster.processes[name] = Process(name, ["bash", "-c", script], self.folder / f"{name}.log", env)
        process.start()
        return process

    def gateway(self, name: str) -> ImageGenClient:
        port = free_port()
        self.cluster.urls[name] = f"http://127.0.0.1:{port}"
        self.run(name, "imagegen gateway", IMAGEGEN_PORT=str(port))
        return ImageGenClient(self.cluster.urls[name], token=TOKEN)

    async def fill(self) -> None:
        """Store the states of many jobs, as weeks of work leave them."""
        nc = await connect(f"tls://127.0.0.1:{self.cluster.nats_port}", "test", access=self.access)
        queue = await JobQueue.open(nc, max_pending=64)
        js = nc.jetstream(publish_async_max_pending=256)
        for start in range(0, OLD_JOBS, 250):
            states = []
            for number in range(start, start + 250):
                values: dict[str, Any] = {"prompt": "x" * 1000}
                job = Job(job_id=str(uuid4()), kind=JobKind.GENERATE, mode="m", parameters=values, submitted_at=number)
                states.append(JobState.queued(job).moved(JobStatus.DONE))
            await asyncio.gather(
                *(
                    js.publish(f"$KV.{queue.names.states}.{state.job_id}", state.model_dump_json().encode())
                    for state in states
                )
            )
        await nc.close()


def listed(client: ImageGenClient) -> int:
    """The number of jobs that a gateway knows."""
    return sum(1 for _ in client.jobs(limit=100))


@pytest.fixture(params=[False, True], ids=["user and password", "credentials file"])
def fleet(
    request: pytest.FixtureRequest, installation: Installation, certificates: Path, tmp_path: Path
) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "fleet", installation, certificates, creds=request.param)
    yield made
    made.cluster.close()


def test_two_gateways_and_two_workers_as_the_page_says(fleet: Fleet) -> None:
    asyncio.run(fleet.fill())
    for name in ("one", "two"):
        fleet.run(f"worker {name}", "imagegen worker", COMFYUI=fleet.cluster.stand_in(name), IMAGEGEN_WORKER_ID=name)
    gateways = [fleet.gateway("gateway one"), fleet.gateway("gateway two")]
    for gateway in gateways:
        gateway.wait_ready(60)
        until(lambda gateway=gateway: len(gateway.workers().workers) == 2)
    jobs = [submit(gateway, color=number, steps=2) for number, gateway in enumerate(gateways * 3)]
    for number, job_id in enumerate(jobs):
        assert ended(gateways[number % 2 - 1], job_id).status == "done"  # as the other one sees it
    for gateway in gateways:
        until(lambda gateway=gateway: listed(gateway) == OLD_JOBS + len(jobs), 30)
    fleet.cluster.processes["gateway one"].restart()
    gateways[0].wait_ready(60)
    until(lambda: listed(gateways[0]) == OLD_JOBS + len(jobs), 30)
    fleet.cluster.check()


def test_the_page_explains_every_permission() -> None:
    rows = re.findall(r"^\| (`[$<_].*?) \|", PAGE, re.MULTILINE)
    told = {subject for row in rows for subject in re.findall(r"`(.*?)`", row)}
    assert {subject.replace("<prefix>", "ai.vision.imagegen") for subject in told} == set(allowed("publish"))
    assert set(allowed("subscribe")) <= set(allowed("publish"))
