"""Apply LoRA and Apply ControlNet in graphs on a real ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests import tiny_adapters
from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import PROMPT, Graph, node, text_to_image

MODEL = "tiny-flux-schnell"


@pytest.fixture(scope="module")
def files(base_directory: Path, tiny_models: dict[str, Path], controlnets: dict[str, Path]) -> dict[str, Path]:
    """Two LoRAs and the ControlNets, where this ComfyUI finds them."""
    loras = base_directory / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    written = {
        name: tiny_adapters.write_peft(loras / f"{name}.safetensors", tiny_models[MODEL], seed=seed)
        for name, seed in (("one", 1), ("two", 2))
    }
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)).save(
        base_directory / "input" / "edges.png"
    )
    return written | controlnets


def with_loras(graph: Graph, *strengths: tuple[str, float]) -> Graph:
    """``graph`` with a chain of Apply LoRA behind its loader."""
    last = "load"
    for index, (name, strength) in enumerate(strengths):
        graph[f"lora{index}"] = node(
            "NeuroLuxApplyLora", pipeline=[last, 0], lora=f"{name}.safetensors", strength=strength
        )
        last = f"lora{index}"
    for key in ("positive", "sample", "decode"):
        graph[key]["inputs"]["pipeline"] = [last, 0]
    return graph


def with_control(graph: Graph, name: str, **changes: Any) -> Graph:
    """``graph`` with Apply ControlNet before Sample."""
    values = {"strength": 0.7, "start": 0.0, "end": 1.0, "mode": "auto", **changes}
    graph["image"] = node("LoadImage", image="edges.png")
    graph["control"] = node(
        "NeuroLuxApplyControlNet", pipeline=["load", 0], controlnet=name, image=["image", 0], **values
    )
    graph["sample"]["inputs"]["pipeline"] = ["control", 0]
    return graph


def test_loras_switch_between_prompts_and_equal_diffusers(
    comfyui: ComfyServer, tiny_models: dict[str, Path], files: dict[str, Path]
) -> None:
    (base,) = comfyui.images(comfyui.run(text_to_image(MODEL)))
    loads = comfyui.log.read_text().count("loaded " + MODEL)
    graphs = [(("one", 0.8), ("two", 0.4)), (("two", 0.4), ("one", 0.8)), (("one", 0.3), ("two", 1.0))]
    (first,), (turned,), (other,) = (
        comfyui.images(comfyui.run(with_loras(text_to_image(MODEL), *chain))) for chain in graphs
    )
    assert first.tobytes() == turned.tobytes()
    assert len({base.tobytes(), first.tobytes(), other.tobytes()}) == 3
    assert comfyui.log.read_text().count("loaded " + MODEL) == loads
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(tiny_models[MODEL])
    for name in ("one", "two"):
        pipe.load_lora_weights(files[name], adapter_name=name)
    pipe.set_adapters(["one", "two"], [0.8, 0.4])
    expected = pipe(
        prompt=PROMPT, width=128, height=128, num_inference_steps=4, guidance_scale=0.0, max_sequence_length=256,
        generator=torch.Generator().manual_seed(7),
    ).images[0]  # fmt: skip
    assert np.array_equal(np.asarray(first), np.asarray(expected))
    (back,) = comfyui.images(comfyui.run(text_to_image(MODEL, filename_prefix="test/back")))
    assert back.tobytes() == base.tobytes()


def test_controlnet_shows_progress_and_previews_and_stops(comfyui: ComfyServer, files: dict[str, Path]) -> None:
    (base,) = comfyui.images(comfyui.run(text_to_image("tiny-flux-dev", steps=4)))
    graph = with_control(text_to_image("tiny-flux-dev", steps=4), "tiny-flux-canny")
    run = comfyui.run_watched(graph)
    (image,) = comfyui.images(run)
    assert image.tobytes() != base.tobytes()
    assert len(run.previews) == 4
    longer = with_control(text_to_image("tiny-flux-dev", steps=60, seed=8), "tiny-flux-canny")
    stopped = comfyui.run_watched(longer, interrupt_at=2)
    assert stopped.status == "error"
    assert stopped.message("execution_interrupted")["node_type"] == "NeuroLuxSample"
    (again,) = comfyui.images(comfyui.run({**graph, "result": {**graph["result"]}}))
    assert again.tobytes() == image.tobytes()


def test_unknown_files_are_named_with_those_there_are(comfyui: ComfyServer, files: dict[str, Path]) -> None:
    run = comfyui.run(with_loras(text_to_image(MODEL), ("nothing", 1.0)))
    assert run.error_class == "InvalidParameter"
    assert "there is no LoRA 'nothing.safetensors'; known are" in run.error_text
    assert "one.safetensors" in run.error_text
    run = comfyui.run(with_control(text_to_image("tiny-flux-dev"), "tiny-sdxl-canny"))
    assert "was made for sdxl" in run.error_text


def test_the_route_lists_the_files(comfyui: ComfyServer, files: dict[str, Path]) -> None:
    found = {(entry["kind"], entry["name"]): entry for entry in comfyui.get("/neurolux/models")["adapters"]}
    lora = found["lora", "one.safetensors"]
    assert lora["family"] == "flux"
    assert lora["bytes"] == files["one"].stat().st_size
    assert found["controlnet", "tiny-sdxl-canny"]["family"] == "sdxl"
    assert found["controlnet", "tiny-flux-union"]["family"] == "flux"
    assert not any("/" in name for _, name in found)


def test_a_part_is_redrawn_along_a_control_image_and_the_rest_is_untouched(
    comfyui: ComfyServer, base_directory: Path, files: dict[str, Path]
) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (100, 150, 3), np.uint8)
    masked = np.zeros((100, 150), bool)
    masked[21:70, 33:101] = True
    Image.fromarray(pixels).save(base_directory / "input" / "photo.png")
    Image.fromarray(masked.astype(np.uint8) * 255).convert("RGB").save(base_directory / "input" / "part.png")
    graph = text_to_image(MODEL, steps=2)
    graph["photo"] = node("LoadImage", image="photo.png")
    graph["mask"] = node("LoadImageMask", image="part.png", channel="red")
    graph["latent"] = node(
        "NeuroLuxEncodeImage", pipeline=["load", 0], image=["photo", 0], mask=["mask", 0],
        fit="pad", width=0, height=0, batch_size=1,
    )  # fmt: skip
    graph["back"] = node("NeuroLuxPutBack", images=["decode", 0], latent=["latent", 0])
    graph["result"]["inputs"]["images"] = ["back", 0]
    (plain,) = comfyui.images(comfyui.run(graph))
    with_control(graph, "tiny-flux-canny", strength=1.0)
    made = [comfyui.images(comfyui.run(graph))[0]]
    graph["control"]["inputs"]["image"] = ["photo", 0]
    made.append(comfyui.images(comfyui.run(graph))[0])
    for image in map(np.asarray, made):
        assert np.array_equal(image[~masked], pixels[~masked])
        assert (image[masked] != pixels[masked]).mean() > 0.9
    assert len({image.tobytes() for image in (plain, *made)}) == 3


def test_a_model_that_no_controlnet_guides_is_refused_before_one_is_looked_for(
    comfyui: ComfyServer, files: dict[str, Path]
) -> None:
    run = comfyui.run(with_control(text_to_image("tiny-flux-fill"), "not there"))
    failed = run.message("execution_error")
    assert failed["node_id"] == "control"
    assert "tiny-flux-fill takes no ControlNet" in failed["exception_message"]
    assert "redraw the masked part with flux-dev or sdxl-base" in failed["exception_message"]
