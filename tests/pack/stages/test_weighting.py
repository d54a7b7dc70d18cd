"""Weights in a prompt: as ComfyUI reads and applies them, or said to have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import text_to_image
from tests.pack.pipelines import borrow, handle_for

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
PROMPTS: dict[str, tuple[str, list[tuple[str, float]]]] = {
    "plain": ("a red cat", [("a red cat", 1.0)]),
    "a number": ("a (red:1.3) cat", [("a ", 1.0), ("red", 1.3), (" cat", 1.0)]),
    "less": ("a (red:0.5) cat", [("a ", 1.0), ("red", 0.5), (" cat", 1.0)]),
    "none": ("a (red:0) cat", [("a ", 1.0), ("red", 0.0), (" cat", 1.0)]),
    "parentheses": ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
    "nested": ("a ((red) cat)", [("a ", 1.0), ("red", 1.21), (" cat", 1.1)]),
    "escaped": (r"a \(red:1.3\) cat", [("a (red:1.3) cat", 1.0)]),
    "everything": ("(a red cat:1.2)", [("a red cat", 1.2)]),
    "a colon": ("(time 10:30) now", [("time 10", 30.0), (" now", 1.0)]),
}


@pytest.mark.parametrize("case", PROMPTS)
@pytest.mark.parametrize("model", ["tiny-sdxl", "tiny-sd15"])
def test_each_token_is_weighted_as_in_comfyui(tiny_models: dict[str, Path], model: str, case: str) -> None:
    from neurolux.stages.prompts.encode import encode

    prompt, parts = PROMPTS[case]
    loaded = borrow(handle_for(tiny_models[model], precision="fp32"))
    [[made, extra]] = encode(loaded, prompt)
    assert extra["neurolux_encoded"].warnings == ()
    plain = "".join(part for part, _ in parts)
    [[embeds, plain_extra]] = encode(loaded, plain, literal=True)
    [[empty, _]] = encode(loaded, "")
    pipe: Any = loaded.pipe
    weights = [1.0] + [weight for part, weight in parts for _ in pipe.tokenizer(part).input_ids[1:-1]]
    expected = embeds.clone()
    for place, weight in enumerate(weights):  # ComfyUI's ClipTokenWeightEncoder.encode_token_weights
        if weight != 1.0:
            expected[0, place] = (embeds[0, place] - empty[0, place]) * weight + empty[0, place]
    assert torch.allclose(made, expected, atol=1e-6)
    assert torch.equal(made, embeds) == (case in ("plain", "escaped"))
    if "pooled_output" in extra:
        assert torch.equal(extra["pooled_output"], plain_extra["pooled_output"])


@pytest.mark.parametrize(("literal", "warned"), [(False, True), (True, False)])
def test_an_encoder_without_weights_is_silent_where_they_are_meant_literally(
    tiny_models: dict[str, Path], literal: bool, warned: bool
) -> None:
    from neurolux.stages.prompts.encode import encode

    [[_, extra]] = encode(borrow(handle_for(tiny_models["tiny-flux-dev"])), "a (red:1.3) cat", literal=literal)
    assert bool(extra["neurolux_encoded"].warnings) == warned


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("(" * 60 + "red" + ")" * 60, "more than 50 parentheses"),
        ("(red:nan)", "weight nan"),
        ("(red:inf)", "weight inf"),
    ],
)
def test_what_no_weight_can_be_is_refused(prompt: str, message: str) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.stages.prompts.weighting import read_weights

    with pytest.raises(InvalidParameter, match=message):
        read_weights(prompt)


def test_an_encoder_without_weights_says_so(comfyui: ComfyServer) -> None:
    told = {}
    for prompt in ("a (red:1.3) cat", "a (red) cat", "a cat <lora:fur:1> embedding:fine"):
        run = comfyui.run(text_to_image("tiny-flux-schnell", prompt=prompt, steps=1))
        told[prompt] = run.outputs.get("sample", {}).get("warnings", [])
    assert list(told.values()) == [
        ["tiny-flux-schnell knows no weights in a prompt: '(red:1.3)' is read as text"],
        [],
        [
            "'<lora:fur:1>' is read as text; to apply a LoRA, use Apply LoRA",
            "'embedding:fine' is read as text: embeddings in a prompt are not supported",
        ],
    ]
