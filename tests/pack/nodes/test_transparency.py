"""Transparency of an image is kept, or said to be unused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import Graph, node

RESULT = {"name": "images", "quality": 90, "filename_prefix": "test/alpha", "output_format": "png"}
IMAGES: Graph = {
    "colours": node("EmptyImage", width=64, height=64, batch_size=1, color=0x336699),
    "mask": node("SolidMask", value=0.25, width=64, height=64),
    "see-through": node("JoinImageWithAlpha", image=["colours", 0], alpha=["mask", 0]),
    "opaque mask": node("SolidMask", value=0.0, width=64, height=64),
    "opaque": node("JoinImageWithAlpha", image=["colours", 0], alpha=["opaque mask", 0]),
}


def saved(comfyui: ComfyServer, graph: Graph, image: str = "see-through", **result: Any) -> tuple[Any, list[str]]:
    """The image that Result saves, and all warnings."""
    graph = IMAGES | graph | {"result": node("NeuroLuxResult", images=[image, 0], **{**RESULT, **result})}
    run = comfyui.run(graph)
    warnings = [text for output in run.outputs.values() for text in output.get("warnings", [])]
    return comfyui.images(run)[0], warnings


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_result_keeps_it_as_save_image_does(comfyui: ComfyServer, output_format: str) -> None:
    image, warnings = saved(comfyui, {}, output_format=output_format, quality=100)
    assert (image.mode, warnings) == ("RGBA", [])
    assert {*np.asarray(image)[..., 3].flatten()} == {191}
    run = comfyui.run(IMAGES | {"result": node("SaveImage", images=["see-through", 0], filename_prefix="test/stock")})
    assert comfyui.images(run)[0].mode == "RGBA"


def test_jpeg_has_none_and_says_so(comfyui: ComfyServer) -> None:
    image, warnings = saved(comfyui, {}, output_format="jpeg")
    assert image.mode == "RGB"
    assert warnings == ["the image's transparency is not used: jpeg has none; use png or webp"]
    assert saved(comfyui, {}, "opaque", output_format="jpeg")[1] == []


def test_an_enlarged_image_keeps_it(comfyui: ComfyServer) -> None:
    larger = node("NeuroLuxUpscaleImage", image=["see-through", 0], upscale_by=2.0, upscaler="lanczos")
    image, _ = saved(comfyui, {"larger": larger}, "larger")
    assert (image.mode, image.size) == ("RGBA", (128, 128))
    assert {*np.asarray(image)[..., 3].flatten()} == {191}


def test_an_extended_image_keeps_it_and_what_is_added_is_opaque(comfyui: ComfyServer) -> None:
    sides = {"left": 0, "top": 0, "right": 16, "bottom": 0, "feather": 0}
    image, _ = saved(comfyui, {"wider": node("NeuroLuxExtendImage", image=["see-through", 0], **sides)}, "wider")
    alpha = np.asarray(image)[..., 3]
    assert {*alpha[:, :64].flatten()} == {191}
    assert {*alpha[:, 64:].flatten()} == {255}


@pytest.mark.parametrize("image", ["see-through", "opaque"])
def test_encode_image_says_that_it_reads_colours_only(comfyui: ComfyServer, image: str) -> None:
    added = {
        "load": node("NeuroLuxLoadModel", model="tiny-sdxl", precision="auto", offload="auto"),
        "encoded": node(
            "NeuroLuxEncodeImage", pipeline=["load", 0], image=[image, 0], fit="crop", width=0, height=0, batch_size=1
        ),
        "decoded": node("NeuroLuxDecode", pipeline=["load", 0], latent=["encoded", 0]),
    }
    _, warnings = saved(comfyui, added, "decoded")
    assert [("transparency is not used: only colours are encoded" in text) for text in warnings] == (
        [True] if image == "see-through" else []
    )
