"""Generation in a real ComfyUI: batches, progress, previews, interrupt, errors, memory."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import node, text_to_image


def test_image_of_a_batch_equals_the_single_image(comfyui: ComfyServer) -> None:
    batch = comfyui.images(comfyui.run(text_to_image("tiny-flux-dev", steps=3, count=3, seed=40)))
    assert len(batch) == 3
    for index, image in enumerate(batch):
        (single,) = comfyui.images(comfyui.run(text_to_image("tiny-flux-dev", steps=3, seed=40 + index)))
        assert np.array_equal(np.asarray(image), np.asarray(single))


def test_same_request_gives_the_same_bytes(comfyui: ComfyServer) -> None:
    graph = text_to_image("tiny-flux-dev", steps=2, seed=45)
    (first,) = comfyui.files(comfyui.run(graph, {"version": 0.4}))
    comfyui.post("/free", {"unload_models": True, "free_memory": True})
    wait_until(lambda: comfyui.get("/neurolux/models")["current_model"] is None)
    again = comfyui.run(graph, {"version": 0.4})
    assert again.message("execution_cached")["nodes"] == []
    assert comfyui.files(again) == [first]


def test_seeds_wrap_at_two_to_the_64(comfyui: ComfyServer) -> None:
    graph = text_to_image("tiny-flux-schnell", steps=1, count=2, seed=2**64 - 1)
    _, second = comfyui.images(comfyui.run(graph))
    (zero,) = comfyui.images(comfyui.run(text_to_image("tiny-flux-schnell", steps=1, seed=0)))
    assert np.array_equal(np.asarray(second), np.asarray(zero))


def test_progress_counts_all_steps_of_the_batch_and_shows_previews(comfyui: ComfyServer) -> None:
    run = comfyui.run_watched(text_to_image("tiny-flux-schnell", count=2, seed=50))
    values = [
        (data["value"], data["max"]) for kind, data in run.events if kind == "progress" and data["node"] == "sample"
    ]
    assert values == [(value, 8) for value in range(1, 9)]
    assert len(run.previews) == 8
    assert all(preview.width == preview.height for preview in run.previews)


@pytest.mark.parametrize("model", ["tiny-flux-dev", "tiny-sdxl-lightning", "tiny-sdxl"])
def test_last_preview_is_the_image(comfyui: ComfyServer, model: str) -> None:
    run = comfyui.run_watched(text_to_image(model, seed=51))
    (image,) = comfyui.images(run)
    first, last = (difference(run.previews[index], image) for index in (0, -1))
    assert last < 12  # the preview is a JPEG, enlarged by ComfyUI
    assert first > last


def test_a_folder_brings_its_own_preview_colours(
    comfyui: ComfyServer, tiny_models: dict[str, Path], base_directory: Path
) -> None:
    folder = base_directory / "models" / "diffusers" / "own-colours"
    shutil.copytree(tiny_models["tiny-flux-schnell"], folder)
    (folder / "latent_rgb.json").write_text('{"factors": [[0,0,0],[0,0,0],[0,0,0],[0,0,0]], "bias": [1, -1, -1]}')
    run = comfyui.run_watched(text_to_image("own-colours"))
    red, green, blue = run.previews[0].resize((1, 1)).getpixel((0, 0))  # pyright: ignore
    assert red > 240
    assert max(green, blue) < 15


def test_interrupt_stops_at_the_step_and_leaves_nothing_behind(comfyui: ComfyServer) -> None:
    graph = text_to_image("tiny-flux-dev", steps=2, seed=60)
    (before,) = comfyui.images(comfyui.run(graph))
    run = comfyui.run_watched(text_to_image("tiny-flux-dev", steps=100, count=8, seed=61), interrupt_at=5)
    assert run.message("execution_interrupted")["node_id"] == "sample"
    assert max(data["value"] for kind, data in run.events if kind == "progress") < 100
    (after,) = comfyui.images(comfyui.run(graph))
    assert np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "no-such"}, "ModelNotFound", "unknown model 'no-such'; known are starter, flux-schnell, flux-dev"),
        ({"model": "flux-schnell"}, "WeightsMissing", "HF_HUB_OFFLINE"),
        ({"width": 1000}, "InvalidParameter", "width 1000 is not a multiple of 16; nearest are 992 and 1008"),
        ({"height": 2064}, "InvalidParameter", "height 2064 is outside 64 to 2048 of this model; nearest is 2048"),
        ({"width": 32}, "InvalidParameter", "width 32 is outside 64 to 2048 of this model; nearest is 64"),
        ({"count": 9}, "InvalidParameter", "num_images 9 is outside 1 to 8"),
        ({"steps": 51}, "InvalidParameter", "num_inference_steps 51 is outside 1 to 50"),
        ({"guidance": 21.0}, "InvalidParameter", "guidance_scale 21 is outside 0 to 20"),
        (
            {"model": "tiny-sdxl-lightning", "steps": 3},
            "InvalidParameter",
            "3 is not available; this model has 1, 2",
        ),
        ({"model": "tiny-sdxl-lightning", "guidance": 7.0}, "InvalidParameter", "guidance_scale 7 is outside 0 to 1"),
    ],
)
def test_bad_request_says_what_and_what_to_do(
    comfyui: ComfyServer, change: dict[str, object], error: str, message: str
) -> None:
    arguments: dict[str, object] = {"model": "tiny-flux-schnell", **change}
    run = comfyui.run(text_to_image(**arguments))  # pyright: ignore[reportArgumentType]
    assert run.status == "error"
    assert run.message("execution_error")["exception_type"].endswith(f".errors.{error}")
    assert message in run.error_text


def test_lightning_samples_in_any_of_its_steps(comfyui: ComfyServer) -> None:
    for steps in (1, 2, 8):
        run = comfyui.run_watched(text_to_image("tiny-sdxl-lightning", steps=steps, seed=70))
        assert run.status == "success"
        assert len(run.previews) == steps


def test_each_checkpoint_is_loaded_once_and_only_if_it_is_sampled_with(comfyui: ComfyServer) -> None:
    """Nodes before Sample take the checkpoint that it will use, or any that is in memory."""

    def loads() -> int:
        return comfyui.log.read_text().count("loaded tiny-sdxl-lightning in")

    comfyui.post("/free", {"unload_models": True, "free_memory": True})
    wait_until(lambda: comfyui.get("/neurolux/models")["current_model"] is None)
    before, counted = loads(), []
    for prompt, steps in (("one", 2), ("two", 8), ("three", 8), ("four", 2)):
        assert comfyui.run(text_to_image("tiny-sdxl-lightning", prompt=prompt, steps=steps)).status == "success"
        counted.append(loads() - before)
    assert counted == [1, 2, 2, 2]


def test_family_loader_refuses_another_family(comfyui: ComfyServer) -> None:
    graph = text_to_image("tiny-sdxl")
    graph["load"] = node("NeuroLuxLoadFlux", model="tiny-sdxl", precision="auto", offload="auto")
    run = comfyui.run(graph)
    assert run.error_class == "InvalidParameter"
    assert "tiny-sdxl is a sdxl model; this loader takes starter, flux-schnell" in run.error_text


def test_family_loaders_make_the_same_image(comfyui: ComfyServer) -> None:
    loaders = {
        "tiny-flux-dev": node("NeuroLuxLoadFlux", model="tiny-flux-dev", precision="auto", offload="auto"),
        "tiny-sdxl-lightning": node(
            "NeuroLuxLoadSDXLLightning", model="tiny-sdxl-lightning", precision="auto", offload="auto"
        ),
    }
    for model, loader in loaders.items():
        graph = text_to_image(model, seed=71)
        (general,) = comfyui.images(comfyui.run(graph))
        (special,) = comfyui.images(comfyui.run({**graph, "load": loader}))
        assert np.array_equal(np.asarray(general), np.asarray(special))


def test_a_sampled_latent_is_sampled_on_and_a_strength_needs_one(comfyui: ComfyServer) -> None:
    graph = text_to_image("tiny-flux-schnell", seed=72)
    (once,) = comfyui.images(comfyui.run(graph))
    over = {**graph["sample"]["inputs"], "latent": ["sample", 0], "strength": 0.5}
    graph["again"] = {**graph["sample"], "inputs": over}
    graph["decode"]["inputs"]["latent"] = ["again", 0]
    (twice,) = comfyui.images(comfyui.run(graph))
    assert not np.array_equal(np.asarray(once), np.asarray(twice))
    graph["sample"]["inputs"]["strength"] = 0.5
    run = comfyui.run(graph)
    assert run.error_class == "InvalidParameter"
    assert "strength 0.5 is how much of an image is redrawn, and the latent is empty" in run.error_text


def test_conditioning_of_another_model_is_refused(comfyui: ComfyServer) -> None:
    graph = text_to_image("tiny-flux-schnell", seed=73)
    graph["other"] = {**graph["load"], "inputs": {**graph["load"]["inputs"], "model": "tiny-sdxl"}}
    graph["positive"]["inputs"]["pipeline"] = ["other", 0]
    run = comfyui.run(graph)
    assert run.error_class == "InvalidParameter"
    assert "encode the prompt with the same pipeline" in run.error_text
    assert run.message("execution_error")["current_inputs"]["pipeline"] == ["pipeline tiny-flux-schnell"]


def test_negative_prompt_is_evaluated_only_where_it_is_used(comfyui: ComfyServer) -> None:
    used = comfyui.run_watched(text_to_image("tiny-sdxl", steps=2, seed=74, negative="a dull day"))
    unused = comfyui.run_watched(text_to_image("tiny-sdxl", steps=2, seed=74, negative="a dark day", guidance=1.0))
    executed = [[data["node"] for kind, data in run.events if kind == "executing"] for run in (used, unused)]
    assert "negative" in executed[0]
    assert "negative" not in executed[1]
    assert unused.status == "success"


def test_a_local_vae_decode_takes_our_latent(comfyui: ComfyServer) -> None:
    """LATENT is ComfyUI's own, so a stock node fits between Sample and Decode."""
    graph = text_to_image("tiny-flux-schnell", seed=75)
    graph["flip"] = node("LatentFlip", samples=["sample", 0], flip_method="y-axis: horizontally")
    graph["decode"]["inputs"]["latent"] = ["flip", 0]
    (image,) = comfyui.images(comfyui.run(graph))
    assert image.size == (128, 128)


def encoded(comfyui: ComfyServer) -> int:
    """How many prompts the text encoders have encoded so far."""
    return comfyui.log.read_text().count("encoded a prompt")


def test_stock_nodes_and_ours_in_one_graph_and_free_takes_it_all(comfyui: ComfyServer) -> None:
    """From a stock latent, through stock nodes; then nothing of it is left, encoded prompts included."""
    graph = text_to_image("tiny-flux-dev", steps=2, seed=76)
    (plain,) = comfyui.images(comfyui.run(graph))
    graph["invert"] = node("ImageInvert", image=["decode", 0])
    graph["scale"] = node(
        "ImageScale", image=["invert", 0], upscale_method="nearest-exact", width=256, height=256, crop="disabled"
    )
    graph["result"]["inputs"]["images"] = ["scale", 0]
    watched = comfyui.run_watched(graph)
    (inverted,) = comfyui.images(watched)
    assert not [event for name, event in watched.events if name == "execution_error"]
    expected = 255 - np.asarray(plain).repeat(2, axis=0).repeat(2, axis=1).astype(int)
    assert np.abs(np.asarray(inverted) - expected).max() <= 1

    before = encoded(comfyui)
    comfyui.run(text_to_image("tiny-flux-dev", steps=2, seed=77))  # another seed: encoded prompts are at hand
    assert encoded(comfyui) == before
    comfyui.post("/free", {"unload_models": True, "free_memory": True})
    wait_until(lambda: comfyui.get("/neurolux/models")["current_model"] is None)
    assert all(model["memory"] is None for model in comfyui.models().values())
    assert comfyui.images(comfyui.run(text_to_image("tiny-flux-dev", steps=2, seed=76)))[0].tobytes() == plain.tobytes()
    assert encoded(comfyui) == before + 1  # so the prompt had been forgotten


def test_models_route_tells_what_is_loaded_and_free_releases_it(comfyui: ComfyServer) -> None:
    comfyui.run(text_to_image("tiny-flux-dev", steps=1, seed=80))
    comfyui.run(text_to_image("tiny-sdxl", steps=1, seed=80))
    described = comfyui.get("/neurolux/models")
    assert described["current_model"] == "tiny-sdxl"
    assert (described["device"], described["dtype"], described["offload"]) == ("cpu", "float32", "none")
    assert comfyui.models()["tiny-flux-dev"]["loaded"]

    comfyui.post("/free", {"unload_models": True})
    wait_until(lambda: comfyui.get("/neurolux/models")["current_model"] is None)
    assert not any(model["loaded"] for model in comfyui.models().values())

    again = comfyui.run(text_to_image("tiny-sdxl", steps=1, seed=81))
    assert again.status == "success"
    assert comfyui.get("/neurolux/models")["current_model"] == "tiny-sdxl"


def test_without_gpu_the_starter_is_the_default_until_flux_weights_are_here(
    comfyui: ComfyServer, tiny_models: dict[str, Path]
) -> None:
    assert comfyui.get("/neurolux/models")["default_model"] == "starter"
    folder = tiny_models["tiny-flux-schnell"].with_name("flux-schnell")
    shutil.copytree(tiny_models["tiny-flux-schnell"], folder)
    try:
        assert comfyui.get("/neurolux/models")["default_model"] == "flux-schnell"
    finally:
        shutil.rmtree(folder)


def test_models_route_describes_every_model(comfyui: ComfyServer) -> None:
    models = comfyui.models()
    assert {"flux-schnell", "flux-dev", "sdxl-lightning", "tiny-flux-schnell", "tiny-sdxl"} <= set(models)
    tiny = models["tiny-flux-schnell"]
    assert (tiny["status"], tiny["reason"], tiny["family"]) == ("ready", None, "flux")
    assert tiny["defaults"] == {"width": 128, "height": 128, "num_inference_steps": 4, "guidance_scale": 0.0}
    assert tiny["limits"]["width"] == {"min": 64, "max": 2048, "multiple_of": 16}
    assert models["flux-dev"]["commercial_use"] is False
    assert models["flux-dev"]["status"] == "missing"
    assert models["sdxl-lightning"]["limits"]["num_inference_steps"]["choices"] == [1, 2, 4, 8]


def test_load_only_reports_the_load_once(comfyui: ComfyServer) -> None:
    comfyui.post("/free", {"unload_models": True})
    wait_until(lambda: comfyui.get("/neurolux/models")["current_model"] is None)
    load = text_to_image("tiny-sdxl-lightning")["load"]
    graph = {"load": load, "warm": node("NeuroLuxWarmUp", pipeline=["load", 0])}
    first, second = (comfyui.run(graph).outputs["warm"]["loaded"][0] for _ in range(2))
    assert (first["model"], first["device"], first["dtype"]) == ("tiny-sdxl-lightning", "cpu", "float32")
    assert first["load_time_ms"] > second["load_time_ms"]


def test_a_model_whose_files_were_replaced_is_loaded_again(
    comfyui: ComfyServer, tiny_models: dict[str, Path], base_directory: Path
) -> None:
    folder = base_directory / "models" / "diffusers" / "replaced"
    shutil.copytree(tiny_models["tiny-flux-schnell"], folder)
    (first,) = comfyui.images(comfyui.run(text_to_image("replaced", seed=90)))
    shutil.rmtree(folder)
    shutil.copytree(tiny_models["tiny-flux-dev"], folder)
    (second,) = comfyui.images(comfyui.run(text_to_image("replaced", seed=90, steps=4)))
    (dev,) = comfyui.images(comfyui.run(text_to_image("tiny-flux-dev", seed=90, steps=4)))
    assert not np.array_equal(np.asarray(first), np.asarray(second))
    assert np.array_equal(np.asarray(second), np.asarray(dev))


def difference(preview: Image.Image, image: Image.Image) -> float:
    """How far two images are apart, in levels of 255, at the image's size."""
    small = preview.resize(image.size, Image.Resampling.BOX)
    return float(np.abs(np.asarray(small, float) - np.asarray(image, float)).mean())


def wait_until(condition: object, timeout_s: float = 10) -> None:
    """Until ``condition()`` is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():  # pyright: ignore[reportCallIssue]
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.1)
