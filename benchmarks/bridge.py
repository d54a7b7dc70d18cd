"""What the bridge costs over raw ComfyUI: in one run, on one ComfyUI, side by side.

The job is trivial (an empty 512x512 picture, saved as PNG), so that nearly all of its time is overhead. Raw is what a
careful script does: open a websocket, post, wait for the end, read the history, fetch the picture; `raw, one websocket`
keeps the websocket open between jobs, which is as fast as ComfyUI can be used. Ratios are against it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import nats
import psutil
from nats.aio.client import Client

from bridge.comfyui.process import free_port
from bridge.service.runtime import Runtime, running_service
from bridge.settings import Settings

MODE = "trivial"
WARM_UP = 5
READY_TIMEOUT_S = 300
COMPARED = "raw, one websocket"
PEER = "comfy-api-proxy"

Job = Callable[[int], Awaitable[None]]


def prefix(color: int) -> str:
    """A folder for every thousand jobs: the node that saves lists its whole folder to find the next free name."""
    return f"bench{color // 1000}/x"


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
                "filename_prefix": ["5", 0],
            },
        },
        "5": {
            "class_type": "NeuroLuxTextParameter",
            "inputs": {
                "name": "prefix", "value": prefix(color), "description": "", "required": False, "max_length": 100
            },
        },
    }  # fmt: skip


def body(color: int) -> dict[str, Any]:
    """The job as the bridge takes it."""
    return {"prompt": "bench", "mode": MODE, "color": color, "prefix": prefix(color)}


class Raw:
    """ComfyUI's own API over one websocket that stays open."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._client = uuid4().hex
        self._waiting: dict[str, asyncio.Future[None]] = {}

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Job]:
        async with self._session.ws_connect(f"{self._url}/ws", params={"clientId": self._client}) as socket:
            reader = asyncio.create_task(self._read(socket))
            yield self.run
            reader.cancel()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if (prompt_id := ended(message)) in self._waiting:
                self._waiting.pop(prompt_id).set_result(None)

    async def run(self, color: int) -> None:
        prompt_id = str(uuid4())
        self._waiting[prompt_id] = future = asyncio.get_running_loop().create_future()
        await post(self._session, self._url, self._client, prompt_id, color)
        await future
        await fetch(self._session, self._url, prompt_id)


async def raw(session: aiohttp.ClientSession, url: str, color: int) -> None:
    """One job over ComfyUI's own API, with a websocket of its own."""
    client, prompt_id = uuid4().hex, str(uuid4())
    async with session.ws_connect(f"{url}/ws", params={"clientId": client}) as socket:
        await post(session, url, client, prompt_id, color)
        async for message in socket:
            if ended(message) == prompt_id:
                break
    await fetch(session, url, prompt_id)


async def post(session: aiohttp.ClientSession, url: str, client: str, prompt_id: str, color: int) -> None:
    prompt = {"prompt": graph(color), "client_id": client, "prompt_id": prompt_id}
    async with session.post(f"{url}/prompt", json=prompt) as response:
        answer = await response.text()
        assert response.status == 200, answer


def ended(message: aiohttp.WSMessage) -> str:
    """The id of the prompt whose end a frame tells; empty for other frames."""
    if message.type is aiohttp.WSMsgType.TEXT:
        event = json.loads(message.data)
        if event["type"] == "executing" and event["data"]["node"] is None:
            return event["data"].get("prompt_id", "")
    return ""


async def fetch(session: aiohttp.ClientSession, url: str, prompt_id: str) -> None:
    async with session.get(f"{url}/history/{prompt_id}") as response:
        image = (await response.json())[prompt_id]["outputs"]["4"]["images"][0]
    async with session.get(f"{url}/view", params=image) as response:
        assert len(await response.read()) > 0


async def by_rest(session: aiohttp.ClientSession, url: str, color: int) -> None:
    """One synchronous request."""
    async with session.post(f"{url}/v1/generate-image", json=body(color)) as response:
        answer = await response.json()
        assert response.status == 200, answer
        assert answer["image_bytes_b64"]


async def by_nats(nc: Client, color: int) -> None:
    """One NATS request."""
    reply = await nc.request("ai.vision.imagegen.request", json.dumps(body(color)).encode(), timeout=300)
    assert json.loads(reply.data).get("image_bytes_b64"), reply.data[:500]


async def by_events(session: aiohttp.ClientSession, url: str, color: int) -> None:
    """Submit, follow the events over a WebSocket, fetch the picture."""
    async with session.post(f"{url}/v1/jobs", json=body(color)) as response:
        job = await response.json()
        assert response.status == 202, job
    async with session.ws_connect(f"{url}/v1/jobs/{job['job_id']}/events") as socket:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT and json.loads(message.data)["type"] == "done":
                break
    async with session.get(f"{url}/v1/jobs/{job['job_id']}/images/0") as response:
        assert response.status == 200
        assert len(await response.read()) > 0


class Peer:
    """comfy-api-proxy and comfy-sdk in an environment of their own, made for this run."""

    def __init__(self, folder: Path, comfyui: str) -> None:
        self._folder = folder
        self._comfyui = comfyui
        self._programs: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        """Install and start both. Raises RuntimeError when that cannot be done here."""
        python = self._folder / "bin" / "python"
        await _call(sys.executable, "-m", "venv", str(self._folder))
        await _call(str(python), "-m", "pip", "install", "--quiet", "comfy-api-proxy", "comfy-sdk")
        port = free_port()
        proxy = str(self._folder / "bin" / "comfy-api-proxy")
        self._programs.append(
            await asyncio.create_subprocess_exec(
                proxy,
                "run",
                "--comfyui",
                self._comfyui,
                "--port",
                str(port),
                "--state-dir",
                str(self._folder / "state"),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        )
        await _accepts(port)
        (self._folder / "graph.json").write_text(json.dumps(graph(0)))
        self._sdk = await asyncio.create_subprocess_exec(
            str(python), str(Path(__file__).with_name("comfy_sdk_peer.py")), str(self._folder / "graph.json"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "COMFY_BASE_URL": f"http://127.0.0.1:{port}"},
        )  # fmt: skip
        self._programs.append(self._sdk)
        await self._answer()

    async def _ask(self, line: str) -> float:
        assert self._sdk.stdin
        self._sdk.stdin.write(line.encode() + b"\n")
        text = await self._answer()
        try:
            return float(text)
        except ValueError:
            raise RuntimeError(text) from None

    async def _answer(self) -> str:
        assert self._sdk.stdout
        async with asyncio.timeout(300):
            line = await self._sdk.stdout.readline()
        if not line:
            raise RuntimeError("comfy-sdk ended")
        return line.decode().strip()

    async def one(self, color: int) -> None:
        await self._ask(f"one {color}")

    async def many(self, jobs: int, first: int) -> float:
        return await self._ask(f"many {jobs} {first}")

    async def stop(self) -> None:
        for program in self._programs:
            with contextlib.suppress(ProcessLookupError):
                program.terminate()
            await program.wait()


async def _call(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[-3:])}: {errors.decode()[-200:].strip()}")


async def _accepts(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return


async def alternate(rounds: int, jobs: dict[str, Job]) -> dict[str, list[float]]:
    """Milliseconds of each kind of job, taken in turns so that the machine's noise hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + WARM_UP):
        for offset, (name, job) in enumerate(jobs.items()):
            start = time.perf_counter()
            await job(number * len(jobs) + offset)
            if number >= WARM_UP:
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
    step, last, last_at = max(1, jobs // 10), 0, time.perf_counter()
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
        command = [sys.executable, "-m", "bridge.cli", "up", "--state-dir", name, "--port", str(settings.port)]
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


def write_mode(settings: Settings) -> None:
    """Save the job's graph as a mode."""
    api = settings.workflows / "api"
    api.mkdir(parents=True)
    (settings.workflows / f"{MODE}.json").write_text(json.dumps({"nodes": [], "links": []}))
    (api / f"{MODE}.json").write_text(json.dumps(graph(0)))


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
    parser.add_argument("--rounds", type=int, default=100, help="jobs of each kind, one at a time")
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
