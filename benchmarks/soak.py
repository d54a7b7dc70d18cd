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
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import aiohttp
from nats.aio.client import Client
from nats.aio.msg import Msg
from PIL import Image

from benchmarks.soak_trouble import NO_SPACE, Outcome, Trouble, Troublemaker
from bridge.broker.connection import BROKER_ERRORS, connect
from bridge.names import Names
from bridge.service.installer import Installation, pinned_installation
from bridge.settings import Settings
from tests.faults.cluster import MODE, Cluster
from tests.faults.disk import SmallDisk, small_disk

APIS = ("REST", "NATS")
DISK_MIB = 512
STORE_BYTES = 32 * 1024**2
LEAST_FREE_BYTES = 16 * 1024**2
IN_FLIGHT = 24
REPLY_TIMEOUT_S = 20.0
END_TIMEOUT_S = 600.0
RETRY_S = 0.2
RECOVERY_S = 60.0


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
        maker = Troublemaker(self._cluster, self._disk, self._dice, self._insist)
        schedule = maker.schedule(trouble, jobs)
        await self._nc.subscribe(Names().result, cb=self._on_result)
        troubling = asyncio.create_task(maker.run(schedule, lambda: self._accepted, outcome, say))
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
                    if code not in ("unavailable", "timeout", "queue_full", *NO_SPACE):
                        return
                    # Refused for want of space, or accepted and failed for it: the service knows.
                    if code in NO_SPACE and (await self._rest("GET", f"/v1/jobs/{job_id}"))[0] == 200:
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
