"""Warnings reach every run: that of a node which ComfyUI did not run again, and what no node could see by itself."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.pack.comfy_server import ComfyServer, Run
from tests.pack.graphs import Graph, node, text_to_image
from tests.tiny_adapters import peft_state

NODES = Path(__file__).parents[3] / "custom_nodes" / "neurolux" / "nodes"
LOAD = node("NeuroLuxLoadModel", model="tiny-sdxl", precision="auto", offload="auto")
COLOURS: Graph = {
    "colours": node("EmptyImage", width=128, height=128, batch_size=1, color=0x336699),
    "half": node("SolidMask", value=0.25, width=128, height=128),
    "see-through": node("JoinImageWithAlpha", image=["colours", 0], alpha=["half", 0]),
}
ENCODE = {"pipeline": ["load", 0], "fit": "crop", "width": 0, "height": 0, "batch_size": 1}


def result(image: str, **more: Any) -> dict[str, Any]:
    """A Result of ``image``."""
    given = {"name": "images", "quality": 90, "filename_prefix": "test/told", "output_format": "png", **more}
    return node("NeuroLuxResult", images=[image, 0], **given)


def warnings_of(run: Run) -> set[str]:
    """Everything that a job's response says."""
    assert run.status == "success", run.messages
    return {text for output in run.outputs.values() for text in output.get("warnings", [])}


def upload(comfyui: ComfyServer, name: str, image: Image.Image) -> str:
    """The image in ComfyUI's input folder."""
    data = io.BytesIO()
    image.save(data, "PNG")
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    body = head.encode() + data.getvalue() + b"\r\n--x\r\n"
    body += b'Content-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with urllib.request.urlopen(urllib.request.Request(comfyui.url + "/upload/image", body, headers)) as answer:
        return json.load(answer)["name"]


def half_transparent(mode: str = "RGBA") -> Image.Image:
    """128x128, its left half transparent."""
    image = Image.new("RGBA", (128, 128), (200, 40, 40, 255))
    image.paste((200, 40, 40, 0), (0, 0, 64, 128))
    return image.convert(mode)


def sampled(**choices: Any) -> Graph:
    return text_to_image("tiny-sdxl", steps=1, **choices)


def with_prompt(name: str, *, field: str = "positive", **inputs: Any) -> Graph:
    """Two prompts, of which the second has what no encoder reads, put together by a stock node."""
    graph = sampled(negative="rain", guidance=3.0)
    graph["second"] = node("NeuroLuxEncodePrompt", pipeline=["load", 0], text="a dog <lora:second:1>")
    graph["both"] = node(name, conditioning_to=[field, 0], conditioning_from=["second", 0], **inputs)
    graph["sample"]["inputs"][field] = ["both", 0]
    return graph


def encoded(image: str = "see-through") -> Graph:
    return COLOURS | {
        "load": LOAD,
        "encoded": node("NeuroLuxEncodeImage", image=[image, 0], **ENCODE),
        "decoded": node("NeuroLuxDecode", pipeline=["load", 0], latent=["encoded", 0]),
        "result": result("decoded"),
    }


def control(kind: str, **inputs: Any) -> Graph:
    made = node(kind, image=["see-through", 0], preprocess=False, **inputs)
    return COLOURS | {"made": made, "result": result("made")}


def put_back() -> Graph:
    return encoded("colours") | {
        "larger": node("NeuroLuxUpscaleImage", image=["decoded", 0], upscale_by=2.0, upscaler="lanczos"),
        "back": node("NeuroLuxPutBack", images=["larger", 0], latent=["encoded", 0]),
        "result": result("back"),
    }


def with_lora() -> Graph:
    graph = sampled()
    graph["lora"] = node("NeuroLuxApplyLora", pipeline=["load", 0], lora="some-absent.safetensors", strength=1.0)
    graph["sample"]["inputs"]["pipeline"] = ["lora", 0]
    return graph


def masked(nodes: Graph, image: str = "colours") -> Graph:
    """Encode Image with the mask of the node ``mask``."""
    graph = encoded(image) | nodes
    graph["encoded"]["inputs"]["mask"] = ["mask", 0]
    return graph


def latent_masked() -> Graph:
    """Sample with a mask that a stock node has given the latent."""
    graph = sampled() | encoded("colours") | {"mask": node("SolidMask", value=1.0, width=32, height=96)}
    graph["set"] = node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 0])
    graph["sample"]["inputs"] |= {"latent": ["set", 0], "strength": 1.0}
    return {name: one for name, one in graph.items() if name != "decoded"} | {"result": result("decode")}


SCORES = {"person_score": 0.5, "joint_score": 0.3}
TOLD: dict[str, tuple[Graph, str]] = {
    "prompt": (sampled(prompt="a cat <lora:first:1>"), "<lora:first:1>"),
    "concat": (with_prompt("ConditioningConcat"), "<lora:second:1>"),
    "average": (with_prompt("ConditioningAverage", conditioning_to_strength=0.5), "<lora:second:1>"),
    "concat in the negative": (with_prompt("ConditioningConcat", field="negative"), "<lora:second:1>"),
    "encode image": (encoded(), "transparency is not used"),
    "canny": (control("NeuroLuxCannyEdges", low_threshold=100, high_threshold=200), "transparency is not used"),
    "depth": (control("NeuroLuxDepthMap"), "transparency is not used"),
    "pose": (control("NeuroLuxPoseSkeleton", **SCORES), "transparency is not used"),
    "put back": (put_back(), "were scaled to"),
    "put back, transparent": (
        encoded("colours") | {"back": node("NeuroLuxPutBack", images=["see-through", 0], latent=["encoded", 0]),
                              "result": result("back")},
        "transparency is not used",
    ),
    "a mask of other proportions": (
        masked({"mask": node("SolidMask", value=1.0, width=64, height=128)}),
        "the mask of 64x128 was stretched to the proportions of 128x128",
    ),
    "fewer masks than images": (
        masked(
            {"pairs": node("EmptyImage", width=128, height=128, batch_size=2, color=0xFFFFFF),
             "mask": node("ImageToMask", image=["pairs", 0], channel="red"),
             "three": node("EmptyImage", width=128, height=128, batch_size=3, color=0x336699)}, image="three",
        ),
        "there are 2 masks for 3 images: they are used in turn",
    ),
    "a latent's mask of other proportions": (latent_masked(), "the mask of 32x96 was stretched"),
    "a mask image and a transparent image": (
        COLOURS | {
            "white": node("EmptyImage", width=128, height=128, batch_size=1, color=0xFFFFFF),
            "prepared": node("NeuroLuxPrepareMask", feather=0, invert=False, mask_image=["white", 0],
                             transparency=["half", 0]),
            "shown": node("MaskToImage", mask=["prepared", 0]), "result": result("shown"),
        },
        "own transparency is not used",
    ),
    "LoRA": (with_lora(), "8 of 10 layers are in use"),
    "jpeg": (COLOURS | {"result": result("see-through", output_format="jpeg")}, "jpeg has none"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def lora(base_directory: Path, tiny_models: dict[str, Path]) -> None:
    """A LoRA with two layers that the model has not."""
    state = peft_state(tiny_models["tiny-sdxl"], seed=9, rank=2, text=False)
    kept = {name: state[name] for name in [*state][: 8 * 2]}
    absent = {f"unet.absent.{n}.lora_{side}.weight": torch.ones(4, 4) for n in range(2) for side in "AB"}
    folder = base_directory / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(kept | absent, folder / "some-absent.safetensors")


@pytest.mark.parametrize("case", TOLD)
def test_a_repeated_request_is_told_the_same(comfyui: ComfyServer, case: str) -> None:
    graph, message = TOLD[case]
    first = warnings_of(comfyui.run(graph))
    assert any(message in text for text in first), first
    again = comfyui.run(graph)
    assert warnings_of(again) == first
    assert len(again.outputs) == 1  # nothing but Result ran


def test_what_was_mended_is_told_no_more(comfyui: ComfyServer) -> None:
    """Neither of another text, nor of a negative prompt that had no effect."""
    assert warnings_of(comfyui.run(sampled(prompt="a cat <lora:mended:1>")))
    assert warnings_of(comfyui.run(sampled(prompt="a cat, mended"))) == set()
    used = sampled(negative="rain <lora:negative:1>", guidance=3.0)
    assert warnings_of(comfyui.run(used))
    unused = sampled(negative="rain <lora:negative:1>", guidance=1.0)
    for _ in range(2):
        assert warnings_of(comfyui.run(unused)) == set()


def test_each_of_a_list_of_images_tells_its_own(comfyui: ComfyServer) -> None:
    """ComfyUI joins what the runs of one node show, and knows only the keys of the first."""
    graph = COLOURS | {
        "nothing": node("SolidMask", value=0.0, width=128, height=128),
        "opaque": node("JoinImageWithAlpha", image=["colours", 0], alpha=["nothing", 0]),
        "batch": node("ImageBatch", image1=["opaque", 0], image2=["see-through", 0]),
        "both": node("RebatchImages", images=["batch", 0], batch_size=1),
    }
    graph["result"] = result("both", output_format="jpeg")
    assert any("jpeg has none" in text for text in warnings_of(comfyui.run(graph)))


LOADERS = {
    "LoadImage": lambda name: node("LoadImage", image=name),
    "ours": lambda name: {**node("NeuroLuxLoadImage", image=name), "_meta": {"title": "photo"}},
}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB"])
@pytest.mark.parametrize("loader", LOADERS)
def test_transparency_that_nothing_takes_up_is_told(comfyui: ComfyServer, loader: str, mode: str) -> None:
    name = upload(comfyui, f"see-through-{mode}.png", half_transparent(mode))
    graph = {
        "load": LOAD,
        "image": LOADERS[loader](name),
        "scaled": node("ImageScaleBy", image=["image", 0], upscale_method="bilinear", scale_by=1.0),
        "encoded": node("NeuroLuxEncodeImage", image=["scaled", 0], **ENCODE),
        "decoded": node("NeuroLuxDecode", pipeline=["load", 0], latent=["encoded", 0]),
        "result": result("decoded"),
    }
    for _ in range(2):
        told = warnings_of(comfyui.run(graph))
        if mode == "RGB":
            assert told == set()
            continue
        (text,) = told
        assert ("photo" if loader == "ours" else name) in text
        assert "is partly transparent" in text
        assert "Link its mask" in text
    linked = graph | {"encoded": node("NeuroLuxEncodeImage", image=["scaled", 0], mask=["image", 1], **ENCODE)}
    if mode != "RGB":
        assert warnings_of(comfyui.run(linked)) == set()


def test_every_node_that_warns_is_remembered(comfyui: ComfyServer) -> None:
    """A node whose schema does not ask for the graph would lose its warnings when ComfyUI caches it."""
    known = comfyui.get("/object_info")
    telling = ("warnings_ui(", "encoded(cls", "applied_output(cls", '"warnings"', "cls.told(")
    classes = [part for path in NODES.glob("*.py") for part in re.split(r"^class ", path.read_text(), flags=re.M)[1:]]
    named = [(re.search(r'node_id="(\w+)"', part), part) for part in classes]
    warning = {found[1] for found, part in named if found and any(word in part for word in telling)}
    assert {"NeuroLuxSample", "NeuroLuxEncodeImage", "NeuroLuxTrainingImages", "NeuroLuxResult"} <= warning
    assert not [name for name in warning if "prompt" not in known[name]["input"].get("hidden", {})]
