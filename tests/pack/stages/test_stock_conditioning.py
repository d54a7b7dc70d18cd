"""What stock nodes do to a prompt before Sample: followed, or refused by name; never dropped in silence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pack.comfy_server import ComfyServer, comfyui_dir
from tests.pack.graphs import Graph, node, text_to_image
from tests.pack.pipelines import LATENT, borrow, handle_for
from tests.pack.stages.test_images import by_diffusers

COND = ["positive", 0]
MASK = node("SolidMask", value=0.5, width=128, height=128)
PROPERTIES = {"cond_NEW": COND, "strength": 1.0, "set_cond_area": "default"}


def area(**values: Any) -> dict[str, Any]:
    """A Set Area node."""
    return {"conditioning": COND, "width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0, **values}


REFUSED: dict[str, tuple[str, Graph, str]] = {
    "set area": ("tiny-sdxl", {"set": node("ConditioningSetArea", **area())}, r"an area \(area, set by Conditioning"),
    "set area, percentage": (
        "tiny-flux-dev", {"set": node("ConditioningSetAreaPercentage", **area(width=0.5, height=1.0))}, "an area",
    ),
    "set area strength": (
        "tiny-sdxl", {"set": node("ConditioningSetAreaStrength", conditioning=COND, strength=0.4)},
        r"a strength \(strength, set by Conditioning \(Set Area Strength\)\)",
    ),
    "set mask": (
        "tiny-flux-dev",
        {"half": MASK, "set": node("ConditioningSetMask", conditioning=COND, mask=["half", 0], strength=1.0,
                                   set_cond_area="default")},
        r"a mask \(mask, set by Conditioning \(Set Mask\)\)",
    ),
    "end of a range": (
        "tiny-sdxl", {"set": node("ConditioningSetTimestepRange", conditioning=COND, start=0.0, end=0.5)},
        r"a last step \(end_percent, set by ConditioningSetTimestepRange\)",
    ),
    "start of a range": (
        "tiny-flux-dev", {"set": node("ConditioningSetTimestepRange", conditioning=COND, start=0.2, end=1.0)},
        "a first step",
    ),
    "reference latent": (
        "tiny-flux-kontext", {"set": node("ReferenceLatent", conditioning=COND, latent=["latent", 0])},
        "reference latents .* Image to Edit",
    ),
    "properties: mask": (
        "tiny-sdxl", {"half": MASK, "set": node("ConditioningSetProperties", **PROPERTIES, mask=["half", 0])}, "a mask",
    ),
    "combined": (
        "tiny-sdxl",
        {"set": node("ConditioningCombine", conditioning_1=COND, conditioning_2=COND)},
        "has 2 parts; use one Encode Prompt",
    ),
    "no guidance at all": (
        "tiny-flux-dev", {"set": node("FluxDisableGuidance", conditioning=COND)},
        "guidance off .* FluxDisableGuidance",
    ),
    "guidance beyond the limits": (
        "tiny-flux-dev", {"set": node("FluxGuidance", conditioning=COND, guidance=99.0)}, "guidance_scale 99",
    ),
    "guidance for schnell": (
        "tiny-flux-schnell", {"set": node("FluxGuidance", conditioning=COND, guidance=3.5)},
        r"guidance 3\.5 \(set by FluxGuidance\), which tiny-flux-schnell does not read",
    ),
    "guidance for SDXL": (
        "tiny-sdxl", {"set": node("FluxGuidance", conditioning=COND, guidance=3.5)}, "set the guidance on Sample",
    ),
}  # fmt: skip
"""Model, nodes between Encode Prompt and Sample (the last is ``set``), and the error."""
NEUTRAL: dict[str, tuple[str, Graph]] = {
    "all of the image": (
        "tiny-sdxl", {"set": node("ConditioningSetAreaPercentage", **area(width=1.0, height=1.0))},
    ),
    "full strength": ("tiny-sdxl", {"set": node("ConditioningSetAreaStrength", conditioning=COND, strength=1.0)}),
    "all steps": (
        "tiny-flux-dev", {"set": node("ConditioningSetTimestepRange", conditioning=COND, start=0.0, end=1.0)},
    ),
    "schnell without guidance": ("tiny-flux-schnell", {"set": node("FluxDisableGuidance", conditioning=COND)}),
    "a repeated prompt": (  # attention to two equal halves is attention to one
        "tiny-sdxl", {"set": node("ConditioningConcat", conditioning_to=COND, conditioning_from=COND)},
    ),
}  # fmt: skip


def with_nodes(model: str, added: Graph, field: str = "positive", **choices: Any) -> Graph:
    """A prompt to an image in two steps; ``added`` come before Sample's ``field``."""
    graph = text_to_image(model, steps=2, **choices) | added
    graph["sample"]["inputs"][field] = ["set", 0]
    return graph


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_followed_is_refused_by_name(comfyui: ComfyServer, case: str) -> None:
    model, added, message = REFUSED[case]
    run = comfyui.run(with_nodes(model, added))
    assert run.status == "error"
    assert run.error_class == "InvalidParameter"
    assert re.search(message, run.error_text), run.error_text


def test_the_negative_is_read_as_closely(comfyui: ComfyServer) -> None:
    added = {"set": node("ConditioningSetAreaStrength", conditioning=["negative", 0], strength=0.4)}
    for text in ("", "dark"):
        run = comfyui.run(with_nodes("tiny-sdxl", added, "negative", negative=text))
        assert "the negative conditioning carries a strength" in run.error_text


@pytest.mark.parametrize("case", NEUTRAL)
def test_what_changes_nothing_is_accepted(comfyui: ComfyServer, case: str) -> None:
    model, added = NEUTRAL[case]
    plain, made = (
        comfyui.images(comfyui.run(graph))[0] for graph in (text_to_image(model, steps=2), with_nodes(model, added))
    )
    assert largest_difference(plain, made) <= (1 if case == "a repeated prompt" else 0)


def largest_difference(one: Any, other: Any) -> int:
    """Of two images, in levels."""
    import numpy as np

    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_the_guidance_of_the_prompt_is_that_of_sample(comfyui: ComfyServer) -> None:
    added = {"set": node("FluxGuidance", conditioning=COND, guidance=9.0)}
    graphs = [
        with_nodes("tiny-flux-dev", added),
        text_to_image("tiny-flux-dev", steps=2, guidance=9.0),
        text_to_image("tiny-flux-dev", steps=2),
        with_nodes("tiny-flux-dev", added, guidance=2.0),
    ]
    runs = [comfyui.run(graph) for graph in graphs]
    first, same, other, both = (comfyui.images(run)[0].tobytes() for run in runs)
    assert first == same == both
    assert first != other
    assert runs[3].outputs["sample"]["warnings"] == [
        "the prompt's own guidance 9 (set by FluxGuidance) was used instead of 2"
    ]


NEGATIVES: dict[str, dict[str, Any]] = {
    "concat": node("ConditioningConcat", conditioning_to=["negative", 0], conditioning_from=["dark", 0]),
    "average": node(
        "ConditioningAverage", conditioning_to=["negative", 0], conditioning_from=["dark", 0],
        conditioning_to_strength=0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NEGATIVES)
def test_an_empty_negative_with_something_mixed_in_is_not_empty(comfyui: ComfyServer, case: str) -> None:
    dark = node("NeuroLuxEncodePrompt", pipeline=["load", 0], text="dark")
    mixed = with_nodes("tiny-sdxl", {"dark": dark, "set": NEGATIVES[case]}, "negative", negative="")
    plain = text_to_image("tiny-sdxl", steps=2, negative="")
    made = [comfyui.images(comfyui.run(graph))[0].tobytes() for graph in (mixed, plain)]
    assert made[0] != made[1]


def test_an_empty_negative_that_was_only_copied_is_still_empty(comfyui: ComfyServer) -> None:
    alike = node(
        "ConditioningAverage", conditioning_to=["negative", 0], conditioning_from=COND, conditioning_to_strength=1.0
    )
    copied = with_nodes("tiny-sdxl", {"set": alike}, "negative", negative="")
    made = [comfyui.images(comfyui.run(graph))[0] for graph in (copied, text_to_image("tiny-sdxl", steps=2))]
    assert made[0].tobytes() == made[1].tobytes()


@pytest.mark.parametrize("field", ["positive", "negative"])
@pytest.mark.parametrize("model", ["tiny-sd15", "tiny-sdxl"])
def test_prompts_of_different_lengths_are_sampled(comfyui: ComfyServer, model: str, field: str) -> None:
    long = node("ConditioningConcat", conditioning_to=[field, 0], conditioning_from=COND)
    run = comfyui.run(with_nodes(model, {"set": long}, field, negative="dark"))
    assert run.status == "success", run.error_text


def test_lengths_that_cannot_be_matched_are_explained() -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.families.registry import family_of
    from neurolux.stages.prompts.conditioning import as_long

    model: Any = type("Model", (), {"name": "some-model"})
    with pytest.raises(InvalidParameter, match="has 77 tokens and the negative 100, and some-model takes both of one"):
        as_long(torch.zeros(1, 77, 8), torch.zeros(1, 100, 8), family_of("sdxl").encoding, model)


@pytest.mark.usefixtures("comfy_modules", "unloaded")
def test_sizes_of_a_prompt_are_those_of_diffusers(tiny_models: dict[str, Path]) -> None:
    from neurolux.stages.decode import decode
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.sample import plan_sample, sample

    from tests.pack.pipelines import make_image

    sizes = {"width": 96, "height": 80, "crop_w": 8, "crop_h": 16, "target_width": 200, "target_height": 100}
    handle = handle_for(tiny_models["tiny-sdxl"], precision="fp32", offload="none")
    loaded = borrow(handle)
    with torch.inference_mode():
        [[embeds, extra]] = encode(loaded, "a cat")
        request = plan_sample(handle.model, None, LATENT, 7, 2, 5.0)
        made = make_image(decode(loaded, sample(loaded, request, [[embeds, {**extra, **sizes}]], None)))
    expected = by_diffusers(
        tiny_models["tiny-sdxl"], "StableDiffusionXLPipeline", torch.float32, num_inference_steps=2,
        guidance_scale=5.0, width=128, height=128, original_size=(80, 96), crops_coords_top_left=(16, 8),
        target_size=(100, 200),
    )  # fmt: skip
    assert made.tobytes() == expected.tobytes()


@pytest.mark.usefixtures("comfy_modules", "unloaded")
def test_every_extra_is_refused_by_its_name_and_so_is_an_unknown_one(tiny_models: dict[str, Path]) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.stages.prompts.conditioning import EXTRAS
    from neurolux.stages.prompts.encode import encode, encoded_tensors

    loaded = borrow(handle_for(tiny_models["tiny-sd15"]))
    [[embeds, extra]] = encode(loaded, "a cat")
    refused = [name for name, known in EXTRAS.items() if not known.neutral(torch.tensor([0.5]))]
    assert {"control", "gligen", "hooks", "unclip_conditioning", "concat_latent_image", "width"} < {*refused}
    for name in refused:
        with pytest.raises(InvalidParameter, match=rf"\({name}, set by .*tiny-sd15"):
            encoded_tensors(loaded, [[embeds, {**extra, name: torch.tensor([0.5])}]], "positive")
    with pytest.raises(InvalidParameter, match="carries 'glow', which is not known here"):
        encoded_tensors(loaded, [[embeds, {**extra, "glow": 1}]], "positive")


def test_every_extra_that_comfyui_sets_is_in_the_list() -> None:
    from neurolux.stages.prompts.conditioning import EXTRAS, GUIDANCE, POOLED

    root = comfyui_dir()
    sources = [root / "nodes.py", root / "comfy" / "hooks.py", *(root / "comfy_extras").glob("nodes_*.py")]
    found = set()
    for path in sources:
        for values in re.findall(r"conditioning_set_values\([^{}]*\{([^{}]*)\}", path.read_text(encoding="utf-8")):
            found |= set(re.findall(r"[\"'](\w+)[\"']\s*:", values))
    assert len(found) > 20
    assert sorted(found - {*EXTRAS, GUIDANCE, POOLED, "samples"}) == []  # samples: of a LATENT on the next line
