"""comfy-api-proxy and comfy-sdk, for comparison."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

from benchmarks.trivial_job import graph
from bridge.service.children.comfyui import free_port


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
