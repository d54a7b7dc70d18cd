"""Stands in for ComfyUI where a test needs many of them, or one that comes back at once after it died.

It speaks ComfyUI 0.3.75's routes and websocket frames as `server.py` and `main.py: prompt_worker` do, and "runs" the
graph of `cluster.py`: it takes as long as asked, and goes as wrong as asked. What the real one can be made to do is
tested on the real one.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import signal
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image

MODELS = ("alpha", "beta")
LIMIT = {"min": 1, "max": 10000}


class StandIn:
    """One server."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.without_nodes = output.with_name(output.name + "-without-nodes")
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.pending: list[list[Any]] = []
        self.running: list[Any] | None = None
        self.history: dict[str, Any] = {}
        self.arrived = asyncio.Event()
        self.interrupted = False
        self.number = 0
        self.loaded: list[str] = []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=100 * 1024**2)
        app.add_routes(
            [
                web.get("/ws", self.websocket),
                web.post("/prompt", self.prompt),
                web.get("/queue", self.get_queue),
                web.post("/queue", self.post_queue),
                web.post("/interrupt", self.interrupt),
                web.get("/history/{id}", self.get_history),
                web.get("/history", self.get_history),
                web.get("/view", self.view),
                web.get("/system_stats", self.stats),
                web.get("/neurolux/models", self.models),
                web.get("/object_info/NeuroLuxResult", self.object_info),
            ]
        )

        async def work(_: web.Application):
            task = asyncio.create_task(self.work())
            yield
            task.cancel()

        app.cleanup_ctx.append(work)
        return app

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query["clientId"]
        self.sockets[client] = socket
        await socket.send_json({"type": "status", "data": {"status": {}, "sid": client}})
        async for _ in socket:
            pass
        self.sockets.pop(client, None)
        return socket

    async def send(self, client: str, kind: str, **data: Any) -> None:
        if (socket := self.sockets.get(client)) and not socket.closed:
            await socket.send_json({"type": kind, "data": data})

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.number += 1
        self.pending.append([self.number, body["prompt_id"], body["prompt"], {"client_id": body["client_id"]}, []])
        self.arrived.set()
        return web.json_response({"prompt_id": body["prompt_id"], "number": self.number, "node_errors": {}})

    async def get_queue(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"queue_running": [self.running] if self.running else [], "queue_pending": self.pending}
        )

    async def post_queue(self, request: web.Request) -> web.Response:
        gone = (await request.json()).get("delete", [])
        self.pending = [item for item in self.pending if item[1] not in gone]
        return web.Response()

    async def interrupt(self, request: web.Request) -> web.Response:
        prompt_id = (await request.json()).get("prompt_id")
        self.interrupted = self.running is not None and prompt_id in (None, self.running[1])
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info.get("id")
        known = self.history if prompt_id is None else {k: v for k, v in self.history.items() if k == prompt_id}
        return web.json_response(known)

    async def view(self, request: web.Request) -> web.StreamResponse:
        path = self.output / request.query["filename"]
        return web.FileResponse(path) if path.exists() else web.Response(status=404)

    async def stats(self, _: web.Request) -> web.Response:
        return web.json_response({"system": {}})

    async def object_info(self, _: web.Request) -> web.Response:
        return web.json_response({} if self.without_nodes.exists() else {"NeuroLuxResult": {}})

    async def models(self, _: web.Request) -> web.Response:
        limits = {name: LIMIT for name in ("width", "height", "num_inference_steps", "num_images")}
        model = {
            "title": "", "family": "", "license": "", "commercial_use": True, "status": "ready",
            "defaults": {"width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 0},
            "limits": {**limits, "guidance_scale": {"min": 0, "max": 1}, "negative_prompt": True},
        }  # fmt: skip
        return web.json_response(
            {
                "current_model": self.loaded[-1] if self.loaded else None,
                "default_model": MODELS[0],
                "device": "cpu",
                "device_name": "stand-in",
                "cuda_available": False,
                "dtype": "float32",
                "offload": "none",
                "vram_total_bytes": 8,
                "vram_free_bytes": 4,
                "models": [{**model, "name": name, "loaded": name in self.loaded} for name in MODELS],
            }
        )

    async def work(self) -> None:
        while True:
            while not self.pending:
                self.arrived.clear()
                await self.arrived.wait()
            self.running = self.pending.pop(0)
            self.interrupted = False
            await self.execute(*self.running[:4])

    async def execute(self, number: int, prompt_id: str, graph: dict[str, Any], extra: dict[str, Any]) -> None:
        client = extra["client_id"]
        work = {
            name: graph[value[0]]["inputs"]["value"] if isinstance(value, list) else value
            for name, value in graph["6"]["inputs"].items()
        }
        await self.send(client, "execution_start", prompt_id=prompt_id)
        await self.send(client, "executing", prompt_id=prompt_id, node="6")
        if work["fault"] == "die":
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        if work["model"] not in self.loaded:
            await asyncio.sleep(0.5)  # a model takes a while to load
            self.loaded = [work["model"]]
        for step in range(work["steps"]):
            if self.interrupted:
                break
            await asyncio.sleep(0.1)
            await self.send(client, "progress", prompt_id=prompt_id, node="6", value=step + 1, max=work["steps"])
            while work["fault"] == "stall" and not self.interrupted:  # one that says nothing more
                await asyncio.sleep(0.05)
        outputs = {}
        messages = [["execution_start", {}]]
        if self.interrupted:
            messages.append(["execution_interrupted", {"prompt_id": prompt_id}])
        else:
            self.output.mkdir(exist_ok=True)
            data = io.BytesIO()
            Image.new("RGB", (16, 16), (work["color"] >> 16 & 255, work["color"] >> 8 & 255, work["color"] & 255)).save(
                data, "PNG"
            )
            name = f"work_{prompt_id}.png"
            (self.output / name).write_bytes(data.getvalue())
            # one line a run, also across restarts: what a test counts
            with (self.output / "runs").open("a") as runs:
                runs.write(prompt_id + "\n")
            images = {"images": [{"filename": name, "subfolder": "", "type": "output"}]}
            outputs = {"7": images}
            await self.send(client, "executed", prompt_id=prompt_id, node="7", output=images)
            messages.append(["execution_success", {"prompt_id": prompt_id}])
        await self.send(client, messages[-1][0], prompt_id=prompt_id)
        if work["fault"] == "late history":
            # the fence comes, and the history is still empty for a while
            await self.send(client, "executing", prompt_id=prompt_id, node=None)
            await asyncio.sleep(0.4)
        self.history[prompt_id] = {
            "prompt": [number, prompt_id, graph, extra, []],
            "outputs": outputs,
            "status": {
                "status_str": "error" if self.interrupted else "success",
                "completed": not self.interrupted,
                "messages": messages,
            },
        }
        self.running = None
        if work["fault"] != "late history":
            await self.send(client, "executing", prompt_id=prompt_id, node=None)
        for other in list(self.sockets):
            await self.send(other, "status", status={"exec_info": {"queue_remaining": len(self.pending)}})


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    runner = web.AppRunner(StandIn(args.output).app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", args.port, reuse_address=True).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
