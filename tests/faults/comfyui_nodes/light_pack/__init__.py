"""What the bridge needs of a node pack, without diffusers: parameter and result nodes, the models route, and a node
that takes as long, and goes as wrong, as a test asks. It lets a real ComfyUI start in a few seconds."""

import os
import signal
import sys
import time
from pathlib import Path

import nodes
import torch
from aiohttp import web
from comfy.utils import ProgressBar
from PIL import Image
from server import PromptServer

sys.path.append(str(Path(__file__).resolve().parents[4] / "custom_nodes"))
from neurolux.routes.restart import add_restart_route  # noqa: E402

add_restart_route(PromptServer.instance.routes)

LIMIT = {"min": 1, "max": 10000}
MODEL = {
    "title": "Light",
    "family": "test",
    "license": "none",
    "commercial_use": True,
    "status": "ready",
    "defaults": {"width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 0.0},
    "limits": {
        "width": LIMIT,
        "height": LIMIT,
        "num_inference_steps": LIMIT,
        "guidance_scale": {"min": 0, "max": 1},
        "num_images": LIMIT,
        "negative_prompt": True,
    },
}
loaded = set()


@PromptServer.instance.routes.get("/neurolux/models")
async def models(_):
    known = [{**MODEL, "name": name, "loaded": name in loaded} for name in ("alpha", "beta")]
    return web.json_response(
        {
            "current_model": next(iter(loaded), None),
            "default_model": "alpha",
            "device": "cpu",
            "device_name": "light",
            "cuda_available": False,
            "dtype": "float32",
            "offload": "none",
            "vram_total_bytes": None,
            "vram_free_bytes": None,
            "models": known,
        }
    )


def parameter(kind, widget):
    class Parameter:
        RETURN_TYPES = (kind,)
        FUNCTION = "run"
        CATEGORY = "test"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's own name
            text = ("STRING", {"default": ""})
            bounds = {name: ("INT", {"default": 0, "min": -(2**31), "max": 2**53}) for name in ("minimum", "maximum")}
            return {"required": {"name": text, "value": widget}, "optional": {"description": text, **bounds}}

        def run(self, name, value, **_):
            return (value,)

    return Parameter


class Result(nodes.SaveImage):
    """Saves, and gives the image back under the name that the bridge looks for."""


class Work:
    """Takes `steps` tenths of a second; `fault` says what goes wrong."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's own name
        whole = ("INT", {"default": 0, "min": 0, "max": 2**53})
        return {
            "required": {"steps": whole, "color": whole, "fault": ("STRING", {}), "model": ("STRING", {})},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(self, steps, color, fault, model, unique_id=None, **_):
        server = PromptServer.instance
        if fault == "disk full":
            with open("/dev/full", "wb") as file:  # the kernel's own disk that is always full
                file.write(b"x")
        if fault == "die":
            time.sleep(0.3)  # a real one takes a moment to run out of memory
            os.kill(os.getpid(), signal.SIGKILL)
        while fault == "hang":  # as a GPU does: no interrupt is looked at
            time.sleep(1)
        if fault == "fail":
            raise ValueError("no luck today")
        if fault == "download":
            tell(server, "neurolux.download", node=unique_id, repo="a/b", file="w.safetensors",
                 done_bytes=500, total_bytes=1000, bytes_per_second=250.0)  # fmt: skip
            tell(server, "neurolux.loading", node=unique_id, model="alpha", value=10, maximum=40)
        bar = ProgressBar(max(1, steps))
        for step in range(steps):
            time.sleep(0.1)
            bar.update_absolute(step + 1, steps, ("JPEG", Image.new("RGB", (16, 16), (step % 255, 0, 0)), 16))
        if model:
            loaded.clear()
            loaded.add(model)
        size = 1024 if fault == "noise" else 32
        if fault == "noise":
            return (torch.rand(1, size, size, 3, generator=torch.Generator().manual_seed(color)),)
        rgb = torch.tensor([color >> 16 & 255, color >> 8 & 255, color & 255]) / 255
        return (rgb.expand(1, size, size, 3).clone(),)


def tell(server, kind, **data):
    server.send_sync(kind, {"prompt_id": server.last_prompt_id, **data}, server.client_id)


NODE_CLASS_MAPPINGS = {
    "NeuroLuxTextParameter": parameter("STRING", ("STRING", {"default": ""})),
    "NeuroLuxIntegerParameter": parameter("INT", ("INT", {"default": 0, "min": 0, "max": 2**53})),
    "NeuroLuxChoiceParameter": parameter("STRING", ("STRING", {"default": ""})),
    "NeuroLuxResult": Result,
    "NeuroLuxTestWork": Work,
}
