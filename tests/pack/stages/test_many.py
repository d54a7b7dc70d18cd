"""Generate Batch and Generate Grid in a real ComfyUI: each image equals the single one; one that fails is left out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny_adapters
from tests.pack.comfy_server import ComfyServer, Run
from tests.pack.graphs import PROMPT, Graph, node, text_to_image
from tests.pack.stages.test_parity import plain_diffusers

MODEL = "tiny-flux-schnell"
DRAWING = {"steps": 0, "guidance": -1.0, "width": 128, "height": 128, "negative_prompt": ""}
TOO_LONG = "word " * 2001


def load(model: str, **changes: Any) -> dict[str, Any]:
    return node("NeuroLuxLoadModel", **{"model": model, "precision": "auto", "offload": "auto", **changes})


def result(source: str, output: int, output_format: str = "png") -> dict[str, Any]:
    names = {"name": "images", "output_format": output_format, "quality": 90, "filename_prefix": "test/many"}
    return node("NeuroLuxResult", images=[source, output], **names)


def batch(prompts: str, seeds: str, model: str = MODEL, output_format: str = "png", **changes: Any) -> Graph:
    """Many prompts to images; the node ``result`` saves them."""
    values = {"prompts": prompts, "seeds": seeds, "combine": "every", **DRAWING, **changes}
    saved = result("draw", 0, output_format)
    saved["inputs"]["caption"] = ["draw", 1]
    return {"load": load(model), "draw": node("NeuroLuxGenerateBatch", pipeline=["load", 0], **values), "result": saved}


def grid(x: tuple[str, str], y: tuple[str, str] = ("none", ""), model: str = MODEL, **changes: Any) -> Graph:
    """A grid; the node ``sheet`` saves the sheet and ``result`` the images."""
    sides = {"x_setting": x[0], "x_values": x[1], "y_setting": y[0], "y_values": y[1]}
    values = {"prompt": PROMPT, "seed": 7, **sides, **DRAWING, **changes}
    return {
        "load": load(model),
        "draw": node("NeuroLuxGenerateGrid", pipeline=["load", 0], **values),
        "sheet": result("draw", 0),
        "result": result("draw", 1),
    }


def warnings(run: Run) -> list[str]:
    return run.outputs.get("draw", {}).get("warnings", [])


def pixels(image: Image.Image) -> bytes:
    return image.convert("RGB").tobytes()


CASES: dict[str, dict[str, Any]] = {
    "tiny-flux-schnell": {},
    "tiny-flux-dev": {"steps": 3},
    "tiny-sdxl-lightning": {},
    "tiny-sdxl": {"steps": 3, "guidance": 5.0, "negative": "blurry, dark"},
}
THEIRS: dict[str, dict[str, Any]] = {
    "tiny-flux-schnell": {"num_inference_steps": 4, "guidance_scale": 0.0, "max_sequence_length": 256},
    "tiny-flux-dev": {"num_inference_steps": 3, "guidance_scale": 3.5, "max_sequence_length": 512},
    "tiny-sdxl-lightning": {"num_inference_steps": 4, "guidance_scale": 0.0},
    "tiny-sdxl": {"num_inference_steps": 3, "guidance_scale": 5.0, "negative_prompt": "blurry, dark"},
}


@pytest.mark.parametrize("model", CASES)
def test_each_image_is_the_single_one_and_that_of_diffusers(
    comfyui: ComfyServer, tiny_models: dict[str, Path], model: str
) -> None:
    case = dict(CASES[model])
    negative = case.pop("negative", "")
    run = comfyui.run(batch(f"{PROMPT}\n\na dog", "7, 40", model, negative_prompt=negative, **case))
    images = comfyui.images(run)
    assert len(images) == 4
    assert warnings(run) == []
    assert pixels(images[0]) == pixels(plain_diffusers(tiny_models[model], **THEIRS[model]))
    single = text_to_image(model, prompt="a dog", seed=40, negative=negative or None, **case)
    assert pixels(images[3]) == pixels(comfyui.images(comfyui.run(single))[0])
    assert len({pixels(image) for image in images}) == 4


def test_pairs_and_captions_and_the_same_bytes_again(comfyui: ComfyServer) -> None:
    graph = batch("a cat\na dog, wet", "3, 1", combine="pairs")
    files = comfyui.files(comfyui.run(graph, {"version": 0.4}))
    assert files == comfyui.files(comfyui.run(graph, {"version": 0.4}))
    images = [Image.open(io.BytesIO(data)) for data in files]
    assert [image.info["parameters"] for image in images] == [
        f"a cat\nSteps: 4, CFG scale: 0, Seed: 3, Size: 128x128, Model: {MODEL}",
        f"a dog, wet\nSteps: 4, CFG scale: 0, Seed: 1, Size: 128x128, Model: {MODEL}",
    ]
    assert json.loads(images[1].info["workflow"]) == {"version": 0.4}
    jpeg = comfyui.images(comfyui.run(batch("a cät", "3", output_format="jpeg")))[0]
    comment = jpeg.getexif().get_ifd(0x8769)[0x9286]
    assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be").startswith("a cät\nSteps: 4")


def test_each_prompt_is_encoded_once(comfyui: ComfyServer) -> None:
    before = comfyui.log.read_text().count("encoded a prompt")
    comfyui.run(batch("once upon a time\ntwice upon a time\nonce upon a time", "1-3", steps=1))
    assert comfyui.log.read_text().count("encoded a prompt") == before + 2


def test_what_fails_is_named_and_the_rest_comes(comfyui: ComfyServer) -> None:
    run = comfyui.run(batch(f"a cat\n{TOO_LONG}\na dog", f"5, {2**64}"))
    assert [image.info["parameters"].splitlines()[0] for image in comfyui.images(run)] == ["a cat", "a dog"]
    told = warnings(run)
    assert len(told) == 4
    assert told[0] == f"not generated: prompt 1 'a cat', seed {2**64}: seed {2**64} is outside 0 to {2**64 - 1}"
    assert told[1].startswith("not generated: prompt 2 'word word word")
    assert told[1].endswith("…', seed 5: the prompt has 10004 characters; at most 10000 are allowed")


def test_only_when_all_fail_the_run_fails(comfyui: ComfyServer) -> None:
    run = comfyui.run(batch("a cat", f"{2**64}-{2**64 + 1}"))
    assert run.error_class == "InvalidParameter"
    assert (
        "none of the 2 images could be generated: prompt 1 'a cat', seed 18446744073709551616: seed" in run.error_text
    )
    same = comfyui.run(batch("a cat\na dog", "1", width=1000))
    assert same.error_class == "InvalidParameter"
    assert same.error_text.strip() == "width 1000 is not a multiple of 16; nearest are 992 and 1008"


def test_progress_counts_the_steps_of_all_images_and_shows_previews(comfyui: ComfyServer) -> None:
    run = comfyui.run_watched(batch("a cat\na dog", f"51, 52, {2**64}"))
    values = [(data["value"], data["max"]) for kind, data in run.events if kind == "progress"]
    assert values == [(value, 16) for value in range(1, 17)]
    assert len(run.previews) == 16


@pytest.mark.parametrize("graph", [batch("a cat\na dog", "1-8", steps=10), grid(("seed", "1-16"), steps=10)])
def test_interrupt_stops_in_the_middle_and_leaves_nothing_behind(comfyui: ComfyServer, graph: Graph) -> None:
    (before,) = comfyui.images(comfyui.run(batch("a cat", "60")))
    run = comfyui.run_watched(graph, interrupt_at=15)
    assert run.message("execution_interrupted")["node_id"] == "draw"
    assert max(data["value"] for kind, data in run.events if kind == "progress") < 60
    assert "result" not in run.outputs
    (after,) = comfyui.images(comfyui.run(batch("a cat", "60")))
    assert pixels(before) == pixels(after)


def test_grid_cells_are_the_single_images_and_are_on_the_sheet(comfyui: ComfyServer) -> None:
    run = comfyui.run(grid(("prompt", "cat, dog"), ("seed", "7-8")))
    images = comfyui.images(run)
    singles = [
        comfyui.images(comfyui.run(text_to_image(MODEL, prompt=PROMPT.replace("cat", animal), seed=seed)))[0]
        for seed in (7, 8)
        for animal in ("cat", "dog")
    ]
    assert [pixels(image) for image in images] == [pixels(single) for single in singles]
    (sheet,) = comfyui.images(run, "sheet")
    assert found_on(sheet, images) == sorted(found_on(sheet, images), key=lambda place: (place[1], place[0]))


def found_on(sheet: Image.Image, images: list[Image.Image]) -> list[tuple[int, int]]:
    """Where each image's own pixels are on the sheet."""
    page = np.asarray(sheet.convert("RGB"))
    places = []
    for image in images:
        wanted = np.asarray(image.convert("RGB"))
        rows, columns = page.shape[0] - wanted.shape[0], page.shape[1] - wanted.shape[1]
        corners = np.argwhere((page[: rows + 1, : columns + 1] == wanted[0, 0]).all(axis=-1))
        place = next(
            (int(x), int(y))
            for y, x in corners
            if np.array_equal(page[y : y + wanted.shape[0], x : x + wanted.shape[1]], wanted)
        )
        places.append(place)
    assert len(set(places)) == len(images)
    return places


def test_a_grid_over_sizes_and_what_the_model_does_not_take(comfyui: ComfyServer) -> None:
    run = comfyui.run(grid(("size", "128, 160x96, 2064"), ("num_inference_steps", "1, 51")))
    images = comfyui.images(run)
    assert [image.size for image in images] == [(128, 128), (160, 96)]
    told = warnings(run)
    assert len(told) == 4
    assert told[0].startswith(
        "not generated: size 2064 x 2064, steps 1: width 2064 is outside 64 to 2048 of this model"
    )
    assert told[1].endswith("steps 51: num_inference_steps 51 is outside 1 to 50 of this model")
    (sheet,) = comfyui.images(run, "sheet")
    assert len(found_on(sheet, images)) == 2
    red = (np.asarray(sheet.convert("RGB")) == (0xFB, 0xE9, 0xE7)).all(axis=-1).sum()
    assert red > 3 * 96 * 96  # four cells with a reason instead of an image


def test_a_grid_over_models_takes_the_defaults_of_each(comfyui: ComfyServer) -> None:
    names = "tiny-flux-dev, no-such, tiny-sdxl-lightning"
    run = comfyui.run(grid(("model", names), model="tiny-flux-dev", guidance=3.5, width=0, height=0))
    images = comfyui.images(run)
    singles = [comfyui.images(comfyui.run(text_to_image(m)))[0] for m in ("tiny-flux-dev", "tiny-sdxl-lightning")]
    assert [pixels(image) for image in images] == [pixels(single) for single in singles]
    (told,) = warnings(run)
    assert told.startswith("not generated: no-such: unknown model 'no-such'; known are starter")
    own = grid(
        ("model", "tiny-flux-dev, tiny-sdxl-lightning"), model="tiny-flux-dev", guidance=3.5, width=96, height=64
    )
    assert [image.size for image in comfyui.images(comfyui.run(own))] == [(96, 64)] * 2  # a size of one's own stays


def test_a_grid_over_steps_loads_the_checkpoint_for_each(comfyui: ComfyServer) -> None:
    run = comfyui.run(grid(("num_inference_steps", "2, 4"), model="tiny-sdxl-lightning"))
    singles = [comfyui.images(comfyui.run(text_to_image("tiny-sdxl-lightning", steps=n)))[0] for n in (2, 4)]
    assert [pixels(image) for image in comfyui.images(run)] == [pixels(single) for single in singles]


def test_a_grid_over_the_strength_of_a_lora(
    comfyui: ComfyServer, base_directory: Path, tiny_models: dict[str, Path]
) -> None:
    loras = base_directory / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    tiny_adapters.write_peft(loras / "many.safetensors", tiny_models[MODEL], seed=3)
    graph = grid(("lora_strength", "0, 0.5, 5"))
    (told,) = {comfyui.run(graph).error_text.strip()}
    assert told == "the pipeline has no LoRA; put Apply LoRA between it and the grid"
    graph["lora"] = node("NeuroLuxApplyLora", pipeline=["load", 0], lora="many.safetensors", strength=1.0)
    graph["draw"]["inputs"]["pipeline"] = ["lora", 0]
    run = comfyui.run(graph)
    without, half = comfyui.images(run)
    assert warnings(run) == ["not generated: LoRA strength 5: lora_strength 5 is outside -4 to 4"]
    single = text_to_image(MODEL)
    assert pixels(without) == pixels(comfyui.images(comfyui.run(single))[0])
    single["lora"] = node("NeuroLuxApplyLora", pipeline=["load", 0], lora="many.safetensors", strength=0.5)
    for name in ("positive", "sample", "decode"):
        single[name]["inputs"]["pipeline"] = ["lora", 0]
    assert pixels(half) == pixels(comfyui.images(comfyui.run(single))[0])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (batch("\n \n", "1"), "prompts is empty; write one prompt a line"),
        (batch("a cat", "red"), "seeds: 'red' is neither a number nor a range; write for example 1-4, 9"),
        (batch("a cat\na dog", "1-33"), "prompts: 66 images are more than the 64 of one job"),
        (grid(("none", "")), "the grid has no side; set x_setting to one of prompt, seed"),
        (grid(("seed", "1"), ("seed", "2")), "both sides vary seed; choose another y_setting"),
        (grid(("prompt", "cat, dog"), ("prompt", "cat, cow")), "both sides replace 'cat'"),
        (grid(("seed", "1-9"), ("num_inference_steps", "1-8")), "y_values: 72 images are more than the 64"),
        (grid(("num_inference_steps", "0")), "num_inference_steps 0 is too few; 1 is the least"),
        (grid(("guidance_scale", "-1")), "guidance_scale -1 is below 0"),
        (grid(("size", "0x128")), "size 0 x 128 has no pixels"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_drawn(
    comfyui: ComfyServer, graph: Graph, message: str
) -> None:
    run = comfyui.run(graph)
    assert run.error_class == "InvalidParameter"
    assert message in run.error_text
