"""`make soak`: jobs over REST and NATS while processes are killed and frozen, the disk fills, and oversized requests
come, at random, by a schedule that a seed repeats.

At the end every accepted job is checked. Lost: it has no final state. Doubled: its end was reported twice. Untrue: it
is done without its image or with another job's, or it failed although nothing was done to it. Unanswered: an oversized
request was not refused as one, or the ordinary request after it did not succeed. All must be zero.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
from nats.aio.client import Client
from nats.aio.msg import Msg
from PIL import Image

from bridge.broker.connection import BROKER_ERRORS, connect
from bridge.names import Names
from bridge.service.installer import Installation, pinned_installation
from bridge.settings import Settings
from tests.faults.cluster import MODE, Cluster
from tests.faults.disk import SmallDisk, small_disk

APIS = ("REST", "NATS")
KILLED = ("worker", "gateway", "nats", "comfyui")
DEATHS = ("worker_died", "comfyui_unavailable")
"""Error codes that a killed or frozen process explains."""
NO_SPACE = ("storage_full",)
"""Error codes that a full disk explains."""
FREEZES_S = (1.0, 5.0, 20.0)
"""How long a process may be frozen: less, and more, than the broker waits for a sign of life."""
FULL_S = 6.0
"""How long the disk stays full."""
DISK_MIB = 512
STORE_BYTES = 32 * 1024**2
LEAST_FREE_BYTES = 16 * 1024**2
LARGE_BODIES = (1_048_000, 1_048_300, 1_048_576, 1_048_577, 1_100_000, 5_000_000)
"""Bytes of a request around NATS' limit for a message and this service's limit for a body, and far above."""
REFUSED = (413, 422)
IN_FLIGHT = 24
REPLY_TIMEOUT_S = 20.0
END_TIMEOUT_S = 600.0
RETRY_S = 0.2
RECOVERY_S = 60.0


@dataclass
class Outcome:
    """What became of the jobs."""

    jobs: int
    kills: Counter[str] = field(default_factory=Counter)
    freezes: Counter[str] = field(default_factory=Counter)
    full_disks: int = 0
    oversized: Counter[int] = field(default_factory=Counter)
    """Oversized requests, by the status of the answer."""
    statuses: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        return not (self.lost or self.doubled or self.untrue or self.unanswered)

    def explains(self, code: str) -> bool:
        """Whether a job may have failed with this code, after what was done to the service."""
        return (code in DEATHS and bool(self.kills or self.freezes)) or (code in NO_SPACE and self.full_disks > 0)

    def report(self) -> str:
        lines = [
            f"{self.jobs} jobs in {self.seconds:.0f} s; killed: {_listed(self.kills)}; "
            f"frozen: {_listed(self.freezes)}; disk full: {self.full_disks}x; oversized requests, by status: {_listed(self.oversized)}",
            "ended: " + ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items())),
            f"lost {len(self.lost)}, doubled {len(self.doubled)}, untrue states {len(self.untrue)}, "
            f"wrong answers to oversized requests {len(self.unanswered)}",
        ]
        return "\n".join([*lines, *self.lost[:20], *self.doubled[:20], *self.untrue[:20], *self.unanswered[:20]])


def _listed(counts: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}x" for name, count in sorted(counts.items())) or "nothing"


@dataclass(frozen=True)
class Trouble:
    """How often each thing is done to the service."""

    kills: int = 0
    freezes: int = 0
    full_disks: int = 0
    oversized: int = 0


Deed = Callable[[Outcome, Callable[[str], None]], Awaitable[None]]
"""Something that is done to the service; it tells the given function what it does."""


class Soak:
    """One run on a cluster whose processes are its own to kill."""

    def __init__(
        self, cluster: Cluster, session: aiohttp.ClientSession, nc: Client, seed: int, disk: SmallDisk | None = None
    ) -> None:
        self._cluster = cluster
        self._disk = disk
        self._session = session
        self._nc = nc
        self._dice = random.Random(seed)
        self._ends: Counter[str] = Counter()

    async def run(self, jobs: int, trouble: Trouble, say: Callable[[str], None]) -> Outcome:
        outcome = Outcome(jobs)
        began = time.monotonic()
        # not one id is the server's: a request whose answer was lost is sent again, and is the same job
        ids = {str(UUID(int=self._dice.getrandbits(128), version=4)): number for number in range(jobs)}
        moments = sorted(self._dice.randrange(jobs) for _ in range(trouble.kills))
        victims = [self._dice.choice(KILLED) for _ in range(trouble.kills)]
        schedule = [(moment, self._killing(victim)) for moment, victim in zip(moments, victims, strict=True)]
        for count, kind in (
            (trouble.freezes, self._freezing),
            (trouble.full_disks, self._filling),
            (trouble.oversized, self._exceeding),
        ):
            schedule += [(self._dice.randrange(jobs), kind()) for _ in range(count)]
        schedule.sort(key=lambda item: item[0])
        await self._nc.subscribe(Names().result, cb=self._on_result)
        troubling = asyncio.create_task(self._disturb(schedule, outcome, say))
        free = asyncio.Semaphore(IN_FLIGHT)
        self._accepted = 0

        async def one(job_id: str, color: int) -> None:
            async with free:
                await self._submit(job_id, color, APIS[color % 2])
                self._accepted += 1

        await asyncio.gather(*(one(job_id, color) for job_id, color in ids.items()))
        await troubling
        say(f"all {jobs} accepted after {time.monotonic() - began:.0f} s")
        deadline = time.monotonic() + END_TIMEOUT_S
        await asyncio.gather(*(self._judge(job_id, color, free, deadline, outcome) for job_id, color in ids.items()))
        outcome.doubled = [
            f"{job_id}: its end was reported {count} times" for job_id, count in self._ends.items() if count > 1
        ]
        outcome.seconds = time.monotonic() - began
        return outcome

    async def _on_result(self, msg: Msg) -> None:
        self._ends[json.loads(msg.data)["job_id"]] += 1

    # -- what is done to the service ---------------------------------------------------------------------------------

    async def _disturb(self, schedule: list[tuple[int, Deed]], outcome: Outcome, say: Callable[[str], None]) -> None:
        for moment, deed in schedule:
            while self._accepted < moment:  # noqa: ASYNC110 - counted by many tasks
                await asyncio.sleep(0.02)
            await deed(outcome, lambda text, moment=moment: say(f"after {moment} jobs: {text}"))

    def _killing(self, victim: str) -> Deed:
        async def kill(outcome: Outcome, say: Callable[[str], None]) -> None:
            say(f"kill -9 {victim}")
            outcome.kills[victim] += 1
            await asyncio.to_thread(self._cluster.processes[victim].restart)

        return kill

    def _freezing(self) -> Deed:
        victim, seconds = self._dice.choice(KILLED), self._dice.choice(FREEZES_S)

        async def freeze(outcome: Outcome, say: Callable[[str], None]) -> None:
            say(f"{victim} is frozen for {seconds:g} s")
            outcome.freezes[victim] += 1
            process = self._cluster.processes[victim].process
            assert process is not None
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            process.send_signal(signal.SIGCONT)

        return freeze

    def _filling(self) -> Deed:
        async def fill(outcome: Outcome, say: Callable[[str], None]) -> None:
            assert self._disk is not None
            say(f"the disk is full for {FULL_S:g} s")
            outcome.full_disks += 1
            await asyncio.to_thread(self._disk.fill)
            await asyncio.sleep(FULL_S)
            self._disk.release()
            if (await self._rest("GET", "/readyz"))[0] != 200:  # as `imagegen up` does, and an operator is told to
                say("the disk is free; NATS is restarted")
                await asyncio.to_thread(self._cluster.processes["nats"].restart)

        return fill

    def _exceeding(self) -> Deed:
        size, wide = self._dice.choice(LARGE_BODIES), self._dice.random() < 0.5

        async def exceed(outcome: Outcome, say: Callable[[str], None]) -> None:
            body = {"mode": MODE, "prompt": ""}
            room = size - len(json.dumps(body, ensure_ascii=False))
            body["prompt"] = "é" * (room // 2) if wide else "x" * room
            data = json.dumps(body, ensure_ascii=False).encode()
            say(f"a request of {len(data)} bytes")
            headers = {"Content-Type": "application/json"}
            status, _ = await self._insist("POST", "/v1/jobs", data=data, headers=headers)
            outcome.oversized[status] += 1
            if status not in REFUSED:
                outcome.unanswered.append(f"a request of {len(data)} bytes was answered with HTTP {status}")
            plain = {"mode": MODE, "prompt": "x", "color": 1}
            status, _ = await self._insist("POST", "/v1/jobs", json=plain)
            if status != 202:
                outcome.unanswered.append(f"the request after one of {len(data)} bytes got HTTP {status}")

        return exceed

    async def _insist(self, method: str, path: str, **options: object) -> tuple[int, bytes]:
        """Ask until the service has an opinion, for as long as it may take to recover from other trouble."""
        deadline = time.monotonic() + RECOVERY_S
        while True:
            status, body = await self._rest(method, path, **options)
            if status not in (0, 429, 503, 504) or time.monotonic() > deadline:
                return status, body
            await asyncio.sleep(RETRY_S)

    # -- jobs --------------------------------------------------------------------------------------------------------

    async def _submit(self, job_id: str, color: int, api: str) -> None:
        """Send until it is accepted: 202 from REST; over NATS an answer, which comes after the job is done."""
        body = {"prompt": "x", "mode": MODE, "color": color, "job_id": job_id}
        while True:
            if api == "REST":
                status, _ = await self._rest("POST", "/v1/jobs", json=body)
                if status == 202:
                    return
                if status not in (0, 429, 503, 504):
                    raise SystemExit(f"job {job_id} was answered with HTTP {status}")
            else:
                try:
                    reply = await self._nc.request(Names().request, json.dumps(body).encode(), timeout=REPLY_TIMEOUT_S)
                    code = json.loads(reply.data).get("error", {}).get("code")
                    if code not in ("unavailable", "timeout", "queue_full"):
                        return
                except BROKER_ERRORS:
                    # Nobody answered: the gateway may have died before or after it queued the job.
                    if (await self._rest("GET", f"/v1/jobs/{job_id}"))[0] == 200:
                        return
            await asyncio.sleep(RETRY_S)

    async def _rest(self, method: str, path: str, **options: object) -> tuple[int, bytes]:
        """Status and body; status 0 when the gateway is away."""
        try:
            async with self._session.request(method, self._cluster.urls["gateway"] + path, **options) as response:  # pyright: ignore
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 0, b""

    async def _judge(self, job_id: str, color: int, free: asyncio.Semaphore, deadline: float, outcome: Outcome) -> None:
        """Wait for the end of an accepted job, and compare what is reported with what is there."""
        async with free:
            while True:
                status, body = await self._rest("GET", f"/v1/jobs/{job_id}")
                state = json.loads(body) if status == 200 else {}
                if state.get("status") in ("done", "failed", "cancelled"):
                    break
                if status == 404 or time.monotonic() > deadline:
                    outcome.lost.append(f"{job_id}: HTTP {status}, {state.get('status')}")
                    return
                await asyncio.sleep(RETRY_S)
            outcome.statuses[state["status"]] += 1
            if state["status"] == "done":
                status, image = await self._rest("GET", f"/v1/jobs/{job_id}/images/0")
                if status != 200:
                    outcome.untrue.append(f"{job_id}: done, but its image is answered with HTTP {status}")
                elif (found := _color(image)) != color:
                    outcome.untrue.append(f"{job_id}: done with the image of job {found}, not {color}")
            elif state["status"] == "cancelled" or not outcome.explains(state["error"]["code"]):
                outcome.untrue.append(f"{job_id}: {state['status']}: {state['error']}")


def _color(image: bytes) -> int:
    red, green, blue = Image.open(io.BytesIO(image)).convert("RGB").getpixel((0, 0))  # pyright: ignore
    return red << 16 | green << 8 | blue


async def soak(
    cluster: Cluster,
    *,
    jobs: int,
    trouble: Trouble,
    seed: int,
    disk: SmallDisk | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Run on a cluster that is ready. `disk` is the one that its NATS server writes to."""
    nc = await connect(cluster.nats_url, "soak")
    try:
        timeout = aiohttp.ClientTimeout(total=REPLY_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            return await Soak(cluster, session, nc, seed, disk).run(jobs, trouble, say)
    finally:
        await nc.close()


@contextmanager
def made_cluster(
    folder: Path, installation: Installation, *, small_disk_mib: int = 0
) -> Iterator[tuple[Cluster, SmallDisk | None]]:
    """A cluster, and the small disk of its NATS server if it has one."""
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(folder / "disk", small_disk_mib)) if small_disk_mib else None
        options = {"jetstream": {"store_dir": str(disk.folder / "nats")}} if disk else {}
        cluster = Cluster(folder / "cluster", installation, **options)
        stack.callback(cluster.close)
        if disk is not None:
            cluster.secrets = {
                "IMAGEGEN_IMAGE_STORE_BYTES": str(STORE_BYTES),
                "IMAGEGEN_JOB_STORE_BYTES": str(STORE_BYTES),
                "IMAGEGEN_DISK_FOLDERS": str(disk.folder),
                "IMAGEGEN_MIN_FREE_DISK_BYTES": str(LEAST_FREE_BYTES),
            }
        yield cluster, disk


def start(cluster: Cluster, *, stand_in: bool) -> None:
    """Start one of each process, and wait until a request would be run."""
    cluster.wait_nats()
    cluster.secrets = {**cluster.secrets, "IMAGEGEN_MAX_PENDING": "100000"}
    cluster.worker(cluster.stand_in() if stand_in else cluster.comfyui())
    cluster.gateway()
    cluster.ready()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, help="processes killed (one for every 40 jobs)")
    parser.add_argument("--freezes", type=int, help="processes frozen for up to 20 s (one for every 100 jobs)")
    parser.add_argument("--full-disks", type=int, default=0, help="times that the disk is full; needs root (0)")
    parser.add_argument("--oversized", type=int, help="oversized requests (one for every 50 jobs)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stand-in", action="store_true", help="use a stand-in for ComfyUI, which starts at once")
    args = parser.parse_args()
    if args.full_disks and os.geteuid() != 0:
        parser.error("--full-disks mounts a small file system, which only root may do")

    def times(given: int | None, jobs: int) -> int:
        return args.jobs // jobs if given is None else given

    trouble = Trouble(times(args.kills, 40), times(args.freezes, 100), args.full_disks, times(args.oversized, 50))
    with tempfile.TemporaryDirectory(prefix="imagegen-soak-") as folder:
        installation = pinned_installation(Settings.from_environment())
        size = DISK_MIB if args.full_disks else 0
        with made_cluster(Path(folder), installation, small_disk_mib=size) as (cluster, disk):
            start(cluster, stand_in=args.stand_in)
            outcome = asyncio.run(soak(cluster, jobs=args.jobs, trouble=trouble, seed=args.seed, disk=disk))
    print(outcome.report())
    sys.exit(not outcome.sound)


if __name__ == "__main__":
    main()
