"""What the bridge costs over raw ComfyUI: in one run, on one ComfyUI, side by side.

The job is trivial (an empty 512x512 image, saved as PNG), so that nearly all of its time is overhead. Raw is what a
careful script does: open a websocket, post, wait for the end, read the history, fetch the image; `raw, one websocket`
keeps the websocket open between jobs, which is as fast as ComfyUI can be used. Ratios are against it.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import nats
import psutil

from benchmarks.peer import Peer
from benchmarks.trivial_job import body, write_mode
from benchmarks.ways import Job, Raw, by_events, by_nats, by_rest, raw
from bridge.service.children.comfyui import free_port
from bridge.service.runtime import Runtime, running_service
from bridge.settings import Settings

TURN = 10
"""Jobs of one kind in a row."""
READY_TIMEOUT_S = 300
COMPARED = "raw, one websocket"
PEER = "comfy-api-proxy"


async def alternate(rounds: int, jobs: dict[str, Job]) -> dict[str, list[float]]:
    """Milliseconds of each kind of job, taken in turns of a few so that the machine's noise affects all alike.

    The first turn, and the first job of each turn, are not counted: what was idle in between is cold.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    color, length = 0, min(TURN, rounds)
    for turn in range(1 + math.ceil(rounds / length)):
        for name, job in jobs.items():
            for number in range(length + 1):
                start = time.perf_counter()
                await job(color)
                color += 1
                if turn and number:
                    times[name].append((time.perf_counter() - start) * 1000)
    return times


async def rate(jobs: int, job: Job, first: int) -> float:
    """Jobs a second with all of them at once."""
    start = time.perf_counter()
    await asyncio.gather(*(job(first + n) for n in range(jobs)))
    return jobs / (time.perf_counter() - start)


async def measure(settings: Settings, runtime: Runtime, args: argparse.Namespace, folder: Path) -> None:
    """Print the table."""
    url, comfyui = settings.url, runtime.comfyui_url
    connector = aiohttp.TCPConnector(limit=0)
    nc = await nats.connect(runtime.nats_url)
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600), connector=connector) as session,
        Raw(session, comfyui).opened() as raw_kept,
    ):
        kinds: dict[str, Job] = {
            "raw, a websocket a job": lambda color: raw(session, comfyui, color),
            COMPARED: raw_kept,
            "bridge by REST": lambda color: by_rest(session, url, color),
            "bridge by NATS": lambda color: by_nats(nc, color),
            "bridge by events": lambda color: by_events(session, url, color),
        }
        peer = Peer(folder / "peer", comfyui) if args.peer else None
        if peer:
            try:
                await peer.start()
                kinds[PEER] = peer.one
            except (RuntimeError, OSError, TimeoutError) as error:
                print(f"{PEER} is left out: {error or type(error).__name__}")
                peer = None
        for repeat in range(args.repeat):
            first = (repeat + 1) * 1_000_000
            one_at_a_time = {name: job for name, job in kinds.items() if name != PEER}
            times = await alternate(args.rounds, one_at_a_time)
            if peer:  # half a second each: fewer do
                try:
                    times |= await alternate(max(3, args.rounds // 10), {PEER: peer.one})
                except RuntimeError as error:
                    print(f"{PEER} failed one at a time: {error}")
            rates: dict[str, float | str] = {}
            for offset, (name, job) in enumerate(kinds.items()):
                start = first + offset * 10_000
                try:
                    rates[name] = await (
                        peer.many(args.jobs, start) if peer and name == PEER else rate(args.jobs, job, start)
                    )
                except RuntimeError as error:
                    rates[name] = str(error)[:40]
            table(times, rates, args.jobs)
        if args.queued:
            await queue_many(session, settings, args.queued)
        if peer:
            await peer.stop()
    await nc.close()


def table(times: dict[str, list[float]], rates: dict[str, float | str], jobs: int) -> None:
    base = statistics.median(times[COMPARED])
    base_rate = rates[COMPARED]
    assert isinstance(base_rate, float)
    print(f"| | p50 ms | p99 ms | p50 over raw, ms | jobs/s, {jobs} at once | of raw |")
    print("|---|---|---|---|---|---|")
    for name, values in times.items():
        p50, p99, speed = statistics.median(values), statistics.quantiles(values, n=100)[-1], rates[name]
        shown = f"{speed:.1f} | {speed / base_rate:.2f}" if isinstance(speed, float) else f"{speed} | "
        print(f"| {name} | {p50:.1f} | {p99:.1f} | {p50 - base:+.1f} | {shown} |", flush=True)


async def queue_many(session: aiohttp.ClientSession, settings: Settings, jobs: int) -> None:
    """Queue jobs without waiting, and watch what they cost while they are run."""
    free = asyncio.Semaphore(32)

    async def submit(color: int) -> None:
        async with free, session.post(f"{settings.url}/v1/jobs", json=body(color)) as response:
            assert response.status == 202, await response.text()

    nc = await nats.connect(_runtime(settings).nats_url)
    ended_jobs = 0

    async def on_result(_: Any) -> None:
        nonlocal ended_jobs
        ended_jobs += 1

    await nc.subscribe("ai.vision.imagegen.result", cb=on_result)
    start = time.perf_counter()
    await asyncio.gather(*(submit(5_000_000 + n) for n in range(jobs)))
    print(f"{jobs} jobs accepted in {time.perf_counter() - start:.1f} s")
    print("| ended | since the last row, ms a job | worker MiB | gateway MiB | nats MiB | comfyui MiB |")
    print("|---|---|---|---|---|---|")
    step, last, last_at = max(1, jobs // 10), 0, start
    while last < jobs:
        target = min(jobs, (last // step + 1) * step)
        async with asyncio.timeout(1800):
            while ended_jobs < target:  # noqa: ASYNC110 - counted by a callback
                await asyncio.sleep(0.05)
        now, done = time.perf_counter(), ended_jobs
        memory = " | ".join(
            f"{_mib(_runtime(settings).pids[name])}" for name in ("worker", "gateway", "nats", "comfyui")
        )
        print(f"| {done} | {(now - last_at) / max(1, done - last) * 1000:.1f} | {memory} |", flush=True)
        last, last_at = done, now
    await nc.close()


def _runtime(settings: Settings) -> Runtime:
    runtime = running_service(settings)
    assert runtime
    return runtime


def _mib(pid: int) -> int:
    return psutil.Process(pid).memory_info().rss // 2**20


async def run(args: argparse.Namespace) -> None:
    """Start a service of our own, measure, stop it."""
    with tempfile.TemporaryDirectory(prefix="imagegen-bench-") as name:
        folder = Path(name)
        settings = Settings.from_environment(state_dir=folder, port=free_port(), max_pending=100_000, max_waits=4096)
        write_mode(settings)
        command = [
            sys.executable,
            "-m",
            "bridge",
            "up",
            "--state-dir",
            name,
            "--port",
            str(settings.port),
        ]
        if args.comfyui_dir:
            command += ["--comfyui-dir", args.comfyui_dir]
        start = time.perf_counter()
        service = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.DEVNULL,
            env={**os.environ, "IMAGEGEN_MAX_PENDING": "100000", "IMAGEGEN_MAX_WAITS": "4096"},
        )
        try:
            runtime = await wait_ready(settings)
            print(f"ready after {time.perf_counter() - start:.1f} s")
            await measure(settings, runtime, args, folder)
        finally:
            service.terminate()
            await service.wait()


async def wait_ready(settings: Settings) -> Runtime:
    """Wait for the service; what runs then."""
    async with aiohttp.ClientSession() as session:
        for _ in range(READY_TIMEOUT_S * 5):
            try:
                async with session.get(f"{settings.url}/readyz") as response:
                    runtime = running_service(settings)
                    if response.status == 200 and runtime:
                        return runtime
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)
    raise SystemExit("the service did not become ready")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=100, help="jobs of each kind, one at a time; at least 2")
    parser.add_argument("--jobs", type=int, default=300, help="jobs of each kind at once, for the throughput")
    parser.add_argument("--repeat", type=int, default=3, help="how often both are measured")
    parser.add_argument(
        "--queued", type=int, default=10_000, help="jobs queued together, for cost and memory over time"
    )
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave comfy-api-proxy out")
    parser.add_argument("--comfyui-dir", help="the ComfyUI to start")


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_arguments(parser)
    asyncio.run(run(parser.parse_args()))
