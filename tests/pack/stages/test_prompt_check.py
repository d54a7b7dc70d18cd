"""A prompt that a model cannot use whole is answered with a warning, and still drawn."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import text_to_image

STARTER = Path(__file__).parents[3] / "custom_nodes" / "neurolux" / "models" / "starter"


def warnings_of(comfyui: ComfyServer, model: str, prompt: str) -> list[str]:
    run = comfyui.run(text_to_image(model, prompt=prompt))
    assert run.status == "success"
    told = [text for output in run.outputs.values() for text in output.get("warnings", [])]
    return list(dict.fromkeys(told))  # each once, as in a response


def test_a_long_prompt_is_said_to_be_cut(comfyui: ComfyServer) -> None:
    assert warnings_of(comfyui, "tiny-sdxl-lightning", "a cat") == []
    [warning] = warnings_of(comfyui, "tiny-sdxl-lightning", "a cat " * 100)
    assert "tiny-sdxl-lightning reads 77: its end has no effect" in warning


def test_words_outside_a_closed_vocabulary_are_named(comfyui: ComfyServer) -> None:
    assert warnings_of(comfyui, "starter", "a red apple on a blue background") == []
    rough = json.loads((STARTER / "vocabulary.json").read_text(encoding="utf-8"))["rough_words"][0].title()
    assert warnings_of(comfyui, "starter", f"{rough} and a cat") == [f"starter shows '{rough}' only roughly"]
    [warning] = warnings_of(comfyui, "starter", "A red apple, a Zeppelin and a red yak!")
    assert warning == "starter does not know 'Zeppelin', 'yak': the image may not show it"


def test_a_prompt_that_is_not_encoded_again_is_still_warned_about(comfyui: ComfyServer) -> None:
    warnings = []
    for seed in (70, 71):  # ComfyUI keeps the encoded prompt, so only the first run encodes it
        run = comfyui.run(text_to_image("tiny-sdxl-lightning", prompt="a dog " * 100, seed=seed))
        warnings.append([text for output in run.outputs.values() for text in output.get("warnings", [])])
    assert all(any("its end has no effect" in text for text in told) for told in warnings)
