"""`make soak`: jobs over REST and NATS while processes are killed at random, by a schedule that a seed repeats.

At the end every accepted job is checked. Lost: it has no final state. Doubled: its end was reported twice. Untrue: it
is done without its image or with another job's, or it failed although nothing was killed. All must be zero.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import aiohttp
from nats.aio.client import Client
from nats.aio.msg import Msg
from PIL import Image

from bridge.broker.connection import BROKER_ERRORS, connect
from bridge.names import Names
from bridge.service.installer import pinned_installation
from bridge.settings import Settings
from tests.faults.cluster import MODE, Cluster

APIS = ("REST", "NATS")
KILLED = ("worker", "gateway", "nats", "comfyui")
DEATHS = ("worker_died", "comfyui_unavailable")
"""Error codes that a killed process explains."""
IN_FLIGHT = 24
REPLY_TIMEOUT_S = 20.0
END_TIMEOUT_S = 600.0
RETRY_S = 0.2


@dataclass
class Outcome:
    """What became of the jobs."""

    jobs: int
    kills: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        return not (self.lost or self.doubled or self.untrue)

    def report(self) -> str:
        lines = [
            f"{self.jobs} jobs in {self.seconds:.0f} s; killed: "
            + (", ".join(f"{name} {count}x" for name, count in sorted(self.kills.items())) or "nothing"),
            "ended: " + ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items())),
            f"lost {len(self.lost)}, doubled {len(self.doubled)}, untrue states {len(self.untrue)}",
        ]
        return "\n".join([*lines, *self.lost[:20], *self.doubled[:20], *self.untrue[:20]])


class Soak:
    """One run on a cluster whose processes are its own to kill."""

    def __init__(self, cluster: Cluster, session: aiohttp.ClientSession, nc: Client, seed: int) -> None:
        self._cluster = cluster
        self._session = session
        self._nc = nc
        self._dice = random.Random(seed)
        self._ends: Counter[str] = Counter()

    async def run(self, jobs: int, kills: int, say: Callable[[str], None]) -> Outcome:
        outcome = Outcome(jobs)
        began = time.monotonic()
        # not one id is the server's: a request whose answer was lost is sent again, and is the same job
        ids = {str(UUID(int=self._dice.getrandbits(128), version=4)): number for number in range(jobs)}
        moments = sorted(self._dice.randrange(jobs) for _ in range(kills))
        victims = [self._dice.choice(KILLED) for _ in range(kills)]
        await self._nc.subscribe(Names().result, cb=self._on_result)
        killer = asyncio.create_task(self._kill(list(zip(moments, victims, strict=True)), outcome, say))
        free = asyncio.Semaphore(IN_FLIGHT)
        self._accepted = 0

        async def one(job_id: str, color: int) -> None:
            async with free:
                await self._submit(job_id, color, APIS[color % 2])
                self._accepted += 1

        await asyncio.gather(*(one(job_id, color) for job_id, color in ids.items()))
        await killer
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

    async def _kill(self, schedule: list[tuple[int, str]], outcome: Outcome, say: Callable[[str], None]) -> None:
        for moment, victim in schedule:
            while self._accepted < moment:  # noqa: ASYNC110 - counted by many tasks
                await asyncio.sleep(0.02)
            process = self._cluster.processes[victim]
            say(f"after {moment} jobs: kill -9 {victim}")
            await asyncio.to_thread(process.restart)
            outcome.kills[victim] += 1

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
            elif state["status"] == "cancelled" or state["error"]["code"] not in DEATHS or not outcome.kills:
                outcome.untrue.append(f"{job_id}: {state['status']}: {state['error']}")


def _color(image: bytes) -> int:
    red, green, blue = Image.open(io.BytesIO(image)).convert("RGB").getpixel((0, 0))  # pyright: ignore
    return red << 16 | green << 8 | blue


async def soak(cluster: Cluster, *, jobs: int, kills: int, seed: int, say: Callable[[str], None] = print) -> Outcome:
    """Run on a cluster that is ready."""
    nc = await connect(cluster.nats_url, "soak")
    try:
        timeout = aiohttp.ClientTimeout(total=REPLY_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            return await Soak(cluster, session, nc, seed).run(jobs, kills, say)
    finally:
        await nc.close()


def start(cluster: Cluster, *, stand_in: bool) -> None:
    """Start one of each process, and wait until a request would be run."""
    cluster.wait_nats()
    cluster.secrets = {"IMAGEGEN_MAX_PENDING": "100000"}
    cluster.worker(cluster.stand_in() if stand_in else cluster.comfyui())
    cluster.gateway()
    cluster.ready()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, help="processes killed (one for every 40 jobs)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stand-in", action="store_true", help="use a stand-in for ComfyUI, which starts at once")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imagegen-soak-") as folder:
        cluster = Cluster(Path(folder) / "cluster", pinned_installation(Settings.from_environment()))
        try:
            start(cluster, stand_in=args.stand_in)
            kills = args.jobs // 40 if args.kills is None else args.kills
            outcome = asyncio.run(soak(cluster, jobs=args.jobs, kills=kills, seed=args.seed))
        finally:
            cluster.close()
    print(outcome.report())
    sys.exit(not outcome.sound)


if __name__ == "__main__":
    main()
