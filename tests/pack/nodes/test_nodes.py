"""The nodes as ComfyUI sees them: schemas, help, locales, parameters and the result."""

from __future__ import annotations

import io
import json
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import Graph, node, text_to_image
from tests.pack.images.test_decoding import LOSSLESS, REFUSED
from tests.pack.node_locales import LOCALE_FILE, node_definitions

INPUTS = {
    "NeuroLuxLoadModel": ["model", "precision", "offload", "compile"],
    "NeuroLuxLoadFlux": ["model", "precision", "offload", "compile"],
    "NeuroLuxLoadSDXLLightning": ["model", "precision", "offload", "compile"],
    "NeuroLuxLoadModelFiles": [
        "model_file",
        "text_encoder",
        "text_encoder_2",
        "vae",
        "family",
        "precision",
        "offload",
        "compile",
    ],  # fmt: skip
    "NeuroLuxApplyLora": ["pipeline", "lora", "strength", "text_encoder_strength"],
    "NeuroLuxApplyLoras": ["pipeline", "loras"],
    "NeuroLuxCannyEdges": ["image", "preprocess", "low_threshold", "high_threshold", "latent"],
    "NeuroLuxDepthMap": ["image", "preprocess", "latent"],
    "NeuroLuxPoseSkeleton": ["image", "preprocess", "person_score", "joint_score", "latent"],
    "NeuroLuxUpscaleImage": ["image", "upscale_by", "upscaler"],
    "NeuroLuxRefineInTiles": [
        "pipeline",
        "image",
        "positive",
        "strength",
        "tile",
        "overlap",
        "seed",
        "steps",
        "guidance",
        "negative",
    ],  # fmt: skip
    "NeuroLuxApplyControlNet": ["pipeline", "controlnet", "image", "strength", "start", "end", "mode"],
    "NeuroLuxEncodePrompt": ["pipeline", "text"],
    "NeuroLuxEmptyLatent": ["pipeline", "width", "height", "batch_size"],
    "NeuroLuxSample": ["pipeline", "positive", "latent", "seed", "steps", "guidance", "negative", "strength"],
    "NeuroLuxDecode": ["pipeline", "latent"],
    "NeuroLuxEncodeImage": ["pipeline", "image", "fit", "width", "height", "batch_size", "mask"],
    "NeuroLuxImageToEdit": ["pipeline", "image", "fit", "width", "height", "batch_size", "image_2", "image_3"],
    "NeuroLuxLoadImage": ["image"],
    "NeuroLuxPrepareMask": ["feather", "invert", "mask_image", "transparency", "mask_transparency"],
    "NeuroLuxExtendImage": ["image", "left", "top", "right", "bottom", "feather"],
    "NeuroLuxPutBack": ["images", "latent"],
    "NeuroLuxGenerateBatch": [
        "pipeline",
        "prompts",
        "seeds",
        "combine",
        "steps",
        "guidance",
        "width",
        "height",
        "negative_prompt",
    ],  # fmt: skip
    "NeuroLuxApplyMotion": ["pipeline", "motion"],
    "NeuroLuxSampleVideo": ["pipeline", "positive", "latent", "frames", "seed", "steps", "guidance", "negative"],
    "NeuroLuxVideoResult": ["images", "name", "fps", "video_format", "quality", "filename_prefix"],
    "NeuroLuxGenerateGrid": [
        "pipeline",
        "prompt",
        "x_setting",
        "x_values",
        "y_setting",
        "y_values",
        "seed",
        "steps",
        "guidance",
        "width",
        "height",
        "negative_prompt",
    ],  # fmt: skip
    "NeuroLuxTextParameter": ["name", "value", "description", "required", "max_length"],
    "NeuroLuxIntegerParameter": ["name", "value", "minimum", "maximum", "step", "description"],
    "NeuroLuxNumberParameter": ["name", "value", "minimum", "maximum", "step", "description"],
    "NeuroLuxChoiceParameter": ["name", "value", "choices", "description"],
    "NeuroLuxFileParameter": ["name", "file", "description", "required", "accept"],
    "NeuroLuxResult": ["images", "name", "output_format", "quality", "filename_prefix", "caption"],
    "NeuroLuxFileResult": ["file", "name", "filename_prefix"],
    "NeuroLuxTrainingImages": ["source"],
    "NeuroLuxTrainLora": [
        "pipeline",
        "images",
        "name",
        "trigger",
        "steps",
        "rank",
        "learning_rate",
        "batch",
        "resolution",
        "seed",
        "resume",
        "sample_prompt",
        "samples",
    ],  # fmt: skip
    "NeuroLuxWarmUp": ["pipeline"],
}
"""The order is part of saved graphs: ``widgets_values`` has no names."""


@pytest.fixture(scope="session")
def object_info(comfyui: ComfyServer) -> dict[str, Any]:
    """What the editor knows of our nodes."""
    return {name: info for name, info in comfyui.get("/object_info").items() if name.startswith("NeuroLux")}


def test_nodes_and_the_order_of_their_inputs(object_info: dict[str, Any]) -> None:
    found = {
        name: [key for group in ("required", "optional") for key in info["input_order"].get(group, [])]
        for name, info in object_info.items()
    }
    assert found == INPUTS


def test_everything_has_a_description_and_a_tooltip(object_info: dict[str, Any]) -> None:
    for name, info in object_info.items():
        assert info["description"], name
        assert all(info["output_tooltips"]), name
        assert info["category"].startswith("NeuroLux"), name
        for group in ("required", "optional"):
            for key, (_, options) in info["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{name}.{key}"


def test_every_node_has_a_help_page_that_names_its_inputs(comfyui: ComfyServer) -> None:
    for name, inputs in INPUTS.items():
        page = comfyui.get_bytes(f"/extensions/neurolux/docs/{name}.md").decode()
        assert all(key in page for key in inputs), name


def test_locale_agrees_with_the_schemas(comfyui: ComfyServer, object_info: dict[str, Any]) -> None:
    assert json.loads(LOCALE_FILE.read_text()) == node_definitions(object_info)
    assert comfyui.get("/i18n")["en"]["nodeDefs"].items() >= node_definitions(object_info).items()


def parameter_graph(class_type: str, target: str = "", **inputs: Any) -> Graph:
    """A parameter node whose value ends in a preview, so that it runs."""
    return {
        "parameter": node(class_type, name="thing", description="", **inputs),
        "show": node("PreviewAny", source=["parameter", 0]),
    }


@pytest.mark.parametrize(
    ("class_type", "inputs", "message"),
    [
        ("NeuroLuxTextParameter", {"value": " ", "required": True, "max_length": 0}, "thing is required"),
        ("NeuroLuxTextParameter", {"value": "abcd", "required": False, "max_length": 3}, "4 characters; at most 3"),
        ("NeuroLuxIntegerParameter", {"value": 9, "minimum": 1, "maximum": 8, "step": 1}, "9 is outside 1 to 8"),
        ("NeuroLuxNumberParameter", {"value": -0.5, "minimum": 0, "maximum": 1, "step": 0.1}, "nearest is 0"),
        ("NeuroLuxIntegerParameter", {"value": 3, "minimum": 5, "maximum": 4, "step": 1}, "correct the node"),
        ("NeuroLuxChoiceParameter", {"value": "c", "choices": "a\nb\n"}, "'c' is not a choice; use a, b"),
        ("NeuroLuxFileParameter", {"file": "", "required": True, "accept": "zip"}, "thing is required"),
    ],
)
def test_parameter_refuses_a_bad_value(
    comfyui: ComfyServer, class_type: str, inputs: dict[str, Any], message: str
) -> None:
    run = comfyui.run(parameter_graph(class_type, **inputs))
    assert run.error_class == "InvalidParameter"
    assert message in run.error_text


@pytest.mark.parametrize(
    ("class_type", "inputs", "shown"),
    [
        ("NeuroLuxTextParameter", {"value": "äöü 🎨", "required": True, "max_length": 10}, "äöü 🎨"),
        ("NeuroLuxIntegerParameter", {"value": 8, "minimum": 1, "maximum": 8, "step": 1}, "8"),
        ("NeuroLuxNumberParameter", {"value": 0.25, "minimum": 0, "maximum": 1, "step": 0.1}, "0.25"),
        ("NeuroLuxChoiceParameter", {"value": "b", "choices": "a\nb\n"}, "b"),
        ("NeuroLuxChoiceParameter", {"value": "anything", "choices": ""}, "anything"),
    ],
)
def test_parameter_gives_its_value(comfyui: ComfyServer, class_type: str, inputs: dict[str, Any], shown: str) -> None:
    run = comfyui.run(parameter_graph(class_type, **inputs))
    assert run.outputs["show"]["text"] == [shown]


def test_choice_links_to_a_stock_v1_combo_and_to_ours(comfyui: ComfyServer) -> None:
    graph = {
        "choice": node("NeuroLuxChoiceParameter", name="x", value="euler", choices="", description=""),
        "model": node("NeuroLuxChoiceParameter", name="x", value="tiny-sdxl", choices="", description=""),
        "sampler": node("KSamplerSelect", sampler_name=["choice", 0]),
        "scale": node(
            "ImageScale", image=["empty", 0], upscale_method=["method", 0], width=8, height=8, crop="disabled"
        ),
        "method": node("NeuroLuxChoiceParameter", name="x", value="bilinear", choices="", description=""),
        "empty": node("EmptyImage", width=16, height=16, batch_size=1, color=0),
        "load": node("NeuroLuxLoadModel", model=["model", 0], precision="auto", offload="auto"),
        "warm": node("NeuroLuxWarmUp", pipeline=["load", 0]),
        "show": node("PreviewImage", images=["scale", 0]),
    }
    run = comfyui.run(graph)
    assert run.status == "success", run.messages
    assert run.outputs["warm"]["loaded"][0]["model"] == "tiny-sdxl"


def test_choice_does_not_link_to_other_inputs(comfyui: ComfyServer) -> None:
    graph = parameter_graph("NeuroLuxChoiceParameter", value="4", choices="")
    graph["image"] = node("EmptyImage", width=["parameter", 0], height=16, batch_size=1, color=0)
    graph["show"] = node("PreviewImage", images=["image", 0])
    answer = comfyui.post("/prompt", {"prompt": graph})
    assert answer["node_errors"]["image"]["errors"][0]["type"] == "return_type_mismatch"


def test_load_image_turns_by_exif_and_masks_by_alpha(comfyui: ComfyServer, base_directory: Path) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 255, 255
    pixels[:, :3, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it upright
    Image.fromarray(pixels).save(base_directory / "input" / "turned.png", exif=exif)
    graph = {
        "parameter": node("NeuroLuxLoadImage", image="turned.png"),
        "mask": node("MaskToImage", mask=["parameter", 1]),
        "result": result_node(["parameter", 0]),
        "result_mask": result_node(["mask", 0]),
    }
    run = comfyui.run(graph)
    (image,), (mask,) = comfyui.images(run), comfyui.images(run, "result_mask")
    assert image.size == (4, 6)
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert [mask.getpixel((0, y)) for y in (0, 5)] == [(255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize("kind", ["16-bit grey + tRNS", "16-bit RGBA", "RGB + tRNS", "LA", "lossless WebP with alpha"])
def test_load_image_keeps_what_the_file_says(comfyui: ComfyServer, base_directory: Path, kind: str) -> None:
    data, colours, alpha = LOSSLESS[kind]
    assert alpha is not None
    (base_directory / "input" / "kept.png").write_bytes(data)  # a name says nothing about the format
    graph = {
        "parameter": node("NeuroLuxLoadImage", image="kept.png"),
        "mask": node("MaskToImage", mask=["parameter", 1]),
        "result": result_node(["parameter", 0]),
        "result_mask": result_node(["mask", 0]),
    }
    run = comfyui.run(graph)
    (image,), (mask,) = comfyui.images(run), comfyui.images(run, "result_mask")
    most = np.iinfo(colours.dtype).max
    assert np.array_equal(np.asarray(image), (colours / most * 255).round())
    assert np.abs(255 - np.asarray(mask)[..., 0] - alpha / most * 255.0).max() <= 0.51


def test_load_image_refuses_an_animation_by_its_title(comfyui: ComfyServer, base_directory: Path) -> None:
    (base_directory / "input" / "moving.webp").write_bytes(REFUSED["animated WebP"][0]())
    run = comfyui.run(
        {
            "parameter": {**node("NeuroLuxLoadImage", image="moving.webp"), "_meta": {"title": "Cat"}},
            "result": result_node(["parameter", 0]),
        }
    )
    assert run.error_class == "InvalidParameter"
    assert "Cat: 'moving.webp' has 2 frames or pages; use a file with one image" in run.error_text


def test_without_an_image_a_node_that_needs_one_is_named(comfyui: ComfyServer) -> None:
    graph = {
        "parameter": {**node("NeuroLuxLoadImage", image=""), "_meta": {"title": "Cat"}},
        "result": {**result_node(["parameter", 0]), "_meta": {"title": "The end"}},
    }
    run = comfyui.run(graph)
    assert run.error_class == "InvalidParameter"
    assert "Cat: no image is chosen, and The end needs one; choose one" in run.error_text


def test_without_an_image_an_optional_input_gets_nothing(comfyui: ComfyServer) -> None:
    graph = {
        "parameter": node("NeuroLuxLoadImage", image=""),
        "empty": node("EmptyImage", width=32, height=16, batch_size=1, color=0),
        "transparency": node("ImageToMask", image=["empty", 0], channel="red"),
        "mask": node(
            "NeuroLuxPrepareMask", feather=0, invert=True, mask_image=["parameter", 0], transparency=["transparency", 0]
        ),
        "shown": node("MaskToImage", mask=["mask", 0]),
        "result": result_node(["shown", 0]),
    }
    (image,) = comfyui.images(comfyui.run(graph))
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_load_image_names_a_missing_image(comfyui: ComfyServer) -> None:
    graph = {
        "parameter": node("NeuroLuxLoadImage", image="no.png"),
        "result": result_node(["parameter", 0]),
    }
    answer = comfyui.post("/prompt", {"prompt": graph})
    assert "no image 'no.png'" in json.dumps(answer["node_errors"])


def test_file_parameter_gives_the_path_of_a_file_in_the_input_folder(
    comfyui: ComfyServer, base_directory: Path
) -> None:
    path = base_directory / "input" / "imagegen" / "set.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"PK")
    graph = parameter_graph("NeuroLuxFileParameter", file="imagegen/set.zip", required=True, accept="zip")
    assert comfyui.run(graph).outputs["show"]["text"] == [str(path)]
    path.unlink()
    refusals = {
        "imagegen/set.zip": "no file 'imagegen/set.zip'",
        "../comfyui.log": "'../comfyui.log' leads out of its folder",
        "/etc/hostname": "'/etc/hostname' leads out of its folder",
    }
    for name, refusal in refusals.items():
        graph["parameter"]["inputs"]["file"] = name
        answer = comfyui.post("/prompt", {"prompt": graph})
        assert refusal in json.dumps(answer["node_errors"])


def result_node(images: list[Any], **changes: Any) -> dict[str, Any]:
    """A Result node."""
    inputs = {"name": "images", "output_format": "png", "quality": 90, "filename_prefix": "test/nodes"}
    return node("NeuroLuxResult", images=images, **{**inputs, **changes})


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_result_file_carries_the_graph(comfyui: ComfyServer, output_format: str) -> None:
    graph = {
        "image": node("EmptyImage", width=32, height=16, batch_size=1, color=0x336699),
        "result": result_node(["image", 0], output_format=output_format),
    }
    workflow = {"nodes": [], "version": 0.4}
    (data,) = comfyui.files(comfyui.run(graph, workflow))
    image = Image.open(io.BytesIO(data))
    assert image.format == output_format.upper()
    assert image.size == (32, 16)
    if output_format == "png":
        stored = {key: json.loads(image.info[key]) for key in ("prompt", "workflow")}
    else:
        tags = (image.getexif()[tag] for tag in (0x0110, 0x010F))
        stored = {key: json.loads(value) for key, _, value in (tag.partition(":") for tag in tags)}
    assert stored == {"prompt": graph, "workflow": workflow}


def test_a_graph_too_large_for_a_jpeg_is_left_out(comfyui: ComfyServer) -> None:
    graph = {
        "image": node("EmptyImage", width=32, height=16, batch_size=1, color=0),
        "result": result_node(["image", 0], output_format="jpeg"),
    }
    (image,) = comfyui.images(comfyui.run(graph, {"note": "x" * 100_000}))
    assert not image.getexif()


def test_result_rounds_to_the_nearest_level(comfyui: ComfyServer) -> None:
    """SaveImage cuts off; diffusers rounds. 0x80 survives both, a blend with white tells them apart."""
    graph = {
        "grey": node("EmptyImage", width=8, height=8, batch_size=1, color=0x808080),
        "white": node("EmptyImage", width=8, height=8, batch_size=1, color=0xFFFFFF),
        "blend": node("ImageBlend", image1=["grey", 0], image2=["white", 0], blend_factor=0.5, blend_mode="normal"),
        "result": result_node(["blend", 0]),
    }
    (image,) = comfyui.images(comfyui.run(graph))
    assert image.getpixel((0, 0)) == (192, 192, 192)  # 191.5


def test_result_is_written_anew_when_all_else_is_cached(comfyui: ComfyServer) -> None:
    graph = text_to_image("tiny-flux-schnell", seed=21)
    first, second = comfyui.run(graph), comfyui.run(graph)
    assert first.outputs["result"]["images"] != second.outputs["result"]["images"]
    assert comfyui.files(first) == comfyui.files(second)
    cached = second.message("execution_cached")["nodes"]
    assert "sample" in cached
    assert "result" not in cached


def test_result_keeps_its_files_in_the_output_folder(comfyui: ComfyServer) -> None:
    graph = {
        "image": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "result": result_node(["image", 0], filename_prefix="../../outside"),
    }
    run = comfyui.run(graph)
    assert run.status == "error"
    assert "outside the output folder" in run.error_text


def test_urls_of_result_files_name_subfolder_and_type(comfyui: ComfyServer) -> None:
    graph = {
        "image": node("EmptyImage", width=8, height=8, batch_size=2, color=0),
        "result": result_node(["image", 0], filename_prefix="a/b"),
    }
    images = comfyui.run(graph).outputs["result"]["images"]
    assert [(image["subfolder"], image["type"]) for image in images] == [("a", "output")] * 2
    assert all(comfyui.get_bytes("/view?" + urllib.parse.urlencode(image)) for image in images)
