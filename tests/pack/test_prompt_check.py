"""A prompt that a model cannot use whole is answered with a warning, and still drawn."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import text_to_image


def warnings_of(comfyui: ComfyServer, model: str, prompt: str) -> list[str]:
    run = comfyui.run(text_to_image(model, prompt=prompt))
    assert run.status == "success"
    return [text for output in run.outputs.values() for text in output.get("warnings", [])]


def test_a_long_prompt_is_said_to_be_cut(comfyui: ComfyServer) -> None:
    assert warnings_of(comfyui, "tiny-sdxl-lightning", "a cat") == []
    [warning] = warnings_of(comfyui, "tiny-sdxl-lightning", "a cat " * 100)
    assert "tiny-sdxl-lightning reads 77: its end has no effect" in warning


def test_words_outside_a_closed_vocabulary_are_named(comfyui: ComfyServer, tiny_models: dict[str, Path]) -> None:
    folder = tiny_models["tiny-flux-schnell"]
    vocabulary = folder / "vocabulary.json"
    vocabulary.write_text(json.dumps({"words": ["a", "red", "apple"]}))
    try:
        warnings = warnings_of(comfyui, "tiny-flux-schnell", "A red apple, a Zeppelin and a red yak!")
    finally:
        vocabulary.unlink()
    assert warnings == ["tiny-flux-schnell does not know 'zeppelin', 'and', 'yak': the picture may not show it"]
