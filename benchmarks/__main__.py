"""`make bench`: what the bridge costs over raw ComfyUI, as a ratio measured in one run on one ComfyUI.

The job is trivial (an empty 512x512 picture, saved as PNG), so that nearly all of its time is overhead. Raw is what
a careful script does: post, wait on the websocket for the end, read the history, fetch the picture.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp

from bridge.comfyui.process import free_port
from bridge.service.runtime import running_service
from bridge.settings import Settings

MODE = "trivial"
WARM_UP = 5
READY_TIMEOUT_S = 180


def graph(color: int) -> dict[str, Any]:
    """The job in API format; another colour each time, so that ComfyUI's cache does not answer."""
    return {
        "1": {
            "class_type": "NeuroLuxIntegerParameter",
            "inputs": {
                "name": "color", "value": color, "minimum": 0, "maximum": 16777215, "step": 1, "description": ""
            },
        },
        "2": {
            "class_type": "NeuroLuxTextParameter",
            "inputs": {"name": "prompt", "value": "", "description": "", "required": False, "max_length": 100},
        },
        "3": {
            "class_type": "EmptyImage",
            "inputs": {"width": 512, "height": 512, "batch_size": 1, "color": ["1", 0]},
        },
        "4": {
            "class_type": "NeuroLuxResult",
            "inputs": {
                "images": ["3", 0], "name": "images", "output_format": "png", "quality": 90,
                "filename_prefix": "bench",
            },
        },
    }  # fmt: skip


async def raw(session: aiohttp.ClientSession, comfyui: str, color: int) -> None:
    """One job over ComfyUI's own API."""
    client, prompt_id = uuid4().hex, str(uuid4())
    async with session.ws_connect(f"{comfyui}/ws", params={"clientId": client}) as socket:
        body = {"prompt": graph(color), "client_id": client, "prompt_id": prompt_id}
        async with session.post(f"{comfyui}/prompt", json=body) as response:
            response.raise_for_status()
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            done = event["type"] == "executing" and event["data"]["node"] is None
            if done and event["data"].get("prompt_id") == prompt_id:
                break
    async with session.get(f"{comfyui}/history/{prompt_id}") as response:
        image = (await response.json())[prompt_id]["outputs"]["4"]["images"][0]
    async with session.get(f"{comfyui}/view", params=image) as response:
        assert len(await response.read()) > 0


async def bridged(session: aiohttp.ClientSession, url: str, color: int) -> None:
    """The same job over the bridge."""
    body = {"prompt": "bench", "mode": MODE, "color": color}
    async with session.post(f"{url}/v1/generate-image", json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        assert answer["image_bytes_b64"]


async def alternate(rounds: int, jobs: dict[str, Callable[[int], Awaitable[None]]]) -> dict[str, list[float]]:
    """Milliseconds of each kind of job, taken in turns so that the machine's noise hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for color in range(rounds + WARM_UP):
        for offset, (name, job) in enumerate(jobs.items()):
            start = time.perf_counter()
            await job(color * len(jobs) + offset)
            if color >= WARM_UP:
                times[name].append((time.perf_counter() - start) * 1000)
    return times


async def rate(jobs: int, parallel: int, job: Callable[[int], Awaitable[None]], first: int) -> float:
    """Jobs a second with `parallel` in flight."""
    free = asyncio.Semaphore(parallel)

    async def one(color: int) -> None:
        async with free:
            await job(color)

    start = time.perf_counter()
    await asyncio.gather(*(one(first + n) for n in range(jobs)))
    return jobs / (time.perf_counter() - start)


async def measure(settings: Settings, comfyui: str, rounds: int, jobs: int) -> None:
    """Print the table."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        kinds: dict[str, Callable[[int], Awaitable[None]]] = {
            "raw": lambda color: raw(session, comfyui, color),
            "bridge": lambda color: bridged(session, settings.url, color),
        }
        times = await alternate(rounds, kinds)
        rates = {name: await rate(jobs, 32, job, 100_000 * (n + 1)) for n, (name, job) in enumerate(kinds.items())}
    p50 = {name: statistics.median(values) for name, values in times.items()}
    p95 = {name: statistics.quantiles(values, n=20)[-1] for name, values in times.items()}
    print(f"{'':8}{'p50 ms':>9}{'p95 ms':>9}{'jobs/s (32 at once)':>22}")
    for name in kinds:
        print(f"{name:8}{p50[name]:9.1f}{p95[name]:9.1f}{rates[name]:22.1f}")
    print(f"bridge / raw: p50 x{p50['bridge'] / p50['raw']:.2f}, throughput x{rates['bridge'] / rates['raw']:.2f}")


async def run(args: argparse.Namespace) -> None:
    """Start a service of our own, measure, stop it."""
    with tempfile.TemporaryDirectory(prefix="imagegen-bench-") as folder:
        settings = Settings.from_environment(state_dir=Path(folder), port=free_port())
        api = settings.workflows / "api"
        api.mkdir(parents=True)
        (settings.workflows / f"{MODE}.json").write_text(json.dumps({"nodes": [], "links": []}))
        (api / f"{MODE}.json").write_text(json.dumps(graph(0)))
        command = [sys.executable, "-m", "bridge.cli", "up", "--state-dir", folder, "--port", str(settings.port)]
        if args.comfyui_dir:
            command += ["--comfyui-dir", args.comfyui_dir]
        start = time.perf_counter()
        service = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        try:
            comfyui = await wait_ready(settings)
            print(f"ready after {time.perf_counter() - start:.1f} s")
            await measure(settings, comfyui, args.rounds, args.jobs)
        finally:
            service.terminate()
            await service.wait()


async def wait_ready(settings: Settings) -> str:
    """Wait for the service; the URL of its ComfyUI."""
    async with aiohttp.ClientSession() as session:
        for _ in range(READY_TIMEOUT_S * 5):
            try:
                async with session.get(f"{settings.url}/readyz") as response:
                    runtime = running_service(settings)
                    if response.status == 200 and runtime:
                        return runtime.comfyui_url
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)
    raise SystemExit("the service did not become ready")


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="jobs of each kind, one at a time")
    parser.add_argument("--jobs", type=int, default=100, help="jobs of each kind for the throughput")
    parser.add_argument("--comfyui-dir", help="the ComfyUI to start")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
