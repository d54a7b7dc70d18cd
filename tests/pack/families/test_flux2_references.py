"""Several images for FLUX.2 klein to see: those of Image to Edit and of stock ReferenceLatent, as in diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from neurolux.errors import InvalidParameter
from neurolux.families import flux2
from neurolux.planning.records import Workload

from tests.pack.comfy_server import ComfyServer
from tests.pack.families.parity import plain
from tests.pack.families.test_flux2 import GUIDANCE, NEGATIVE, image
from tests.pack.graphs import node, text_to_image
from tests.pack.pipelines import PROMPT, borrow, budget_for, handle_for, make_image
from tests.pack.stages.test_images import encoded, some_image, some_mask

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
EDITED, SECOND, THIRD = some_image(96, 128), some_image(80, 64, seed=4), some_image(64, 112, seed=5)
EMPTY = {"samples": torch.zeros(1, 16, 8, 6), "downscale_ratio_spacial": 16}
"""Of the size of ``EDITED``."""


def edit(
    folder: Path,
    latent_of: Callable[[Any], Mapping[str, Any]],
    references: Sequence[torch.Tensor] = (),
    *,
    negative: Sequence[torch.Tensor] | None = None,
    stock: Mapping[str, Any] | None = None,
    **choices: Any,
) -> tuple[torch.Tensor, list[str]]:
    """The pack's image, and its warnings. ``references``, ``negative``: images behind ReferenceLatent, which encodes
    them first; ``stock``: another extra of the positive prompt."""
    from neurolux.stages.decode import decode
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.sample import plan_sample, sample

    handle = handle_for(folder, **choices)
    loaded = borrow(handle)

    def prompt(text: str, images: Sequence[torch.Tensor], more: Mapping[str, Any]) -> Any:
        [[embeds, extra]] = encode(loaded, text)
        latents = [encoded(each)(loaded)["samples"] for each in images]
        return [[embeds, {**extra, **({"reference_latents": latents} if latents else {}), **more}]]

    with torch.inference_mode():  # as ComfyUI runs nodes
        positive = prompt(PROMPT, references, stock or {})
        against = None if negative is None else prompt(NEGATIVE, negative, {})
        guidance = -1.0 if negative is None else GUIDANCE
        request = plan_sample(handle.model, None, latent_of(loaded), 7, 2, guidance)
        made = decode(loaded, sample(loaded, request, positive, against))
    warnings = [*loaded.unreported_warnings]
    loaded.unreported_warnings.clear()
    return made, warnings


def edited(*references: torch.Tensor) -> Callable[[Any], dict[str, Any]]:
    """What Image to Edit does with ``EDITED`` and further images."""
    return lambda loaded: {**encoded(EDITED)(loaded), "references": tuple(each[0] for each in references)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_an_image_made_of_three_is_that_of_diffusers(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str, offload: str
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0))
    folder = tiny_models["tiny-flux2-klein"]
    given = [make_image(each) for each in (EDITED, SECOND, THIRD)]
    expected = image(plain(folder, precision, Flux2KleinPipeline), image=given, width=96, height=128)
    made, _ = edit(folder, edited(SECOND, THIRD), precision=precision, offload=offload)
    assert torch.equal(made, expected)
    one = image(plain(folder, precision, Flux2KleinPipeline), image=given[:1], width=96, height=128)
    assert not torch.equal(expected, one)


ORDERS: dict[str, tuple[Callable[[Any], Mapping[str, Any]], tuple[torch.Tensor, ...]]] = {
    "all chained": (lambda loaded: EMPTY, (EDITED, SECOND, THIRD)),
    "one chained": (edited(SECOND), (THIRD,)),
}


@pytest.mark.parametrize("case", ORDERS)
def test_chained_reference_latents_follow_in_order(tiny_models: dict[str, Path], case: str) -> None:
    folder = tiny_models["tiny-flux2-klein"]
    latent, chained = ORDERS[case]
    expected, _ = edit(folder, edited(SECOND, THIRD), precision="fp32")
    made, _ = edit(folder, latent, chained, precision="fp32", stock={"reference_latents_method": "index"})
    assert torch.equal(made, expected)


def test_both_prompts_are_shown_the_same_images(tiny_models: dict[str, Path]) -> None:
    folder = tiny_models["tiny-flux2-klein-base"]
    made, said = edit(folder, lambda loaded: EMPTY, [SECOND], negative=[SECOND], precision="fp32")
    alone, warned = edit(folder, lambda loaded: EMPTY, [SECOND], negative=[], precision="fp32")
    assert torch.equal(made, alone)
    assert not said
    assert warned == ["the reference latents of the positive conditioning are shown with the negative one as well"]


def mixed(loaded: Any) -> dict[str, Any]:
    return encoded(some_image(), some_mask())(loaded)


REFUSED: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "another negative": (
        "tiny-flux2-klein-base", lambda loaded: EMPTY, {"references": [SECOND], "negative": [THIRD]},
        "link the same ReferenceLatent nodes behind both",
    ),
    "another method": (
        "tiny-flux2-klein", lambda loaded: EMPTY,
        {"references": [SECOND], "stock": {"reference_latents_method": "uxo"}}, "by 'uxo' .* by index only",
    ),
    "a mask": ("tiny-flux2-klein", mixed, {"references": [SECOND]}, "sees no reference images while it redraws a mask"),
    "another latent space": (
        "tiny-flux2-klein", lambda loaded: EMPTY, {"stock": {"reference_latents": [torch.ones(1, 4, 8, 8)]}},
        "the latent has 4 channels",
    ),
    "a small one": ("tiny-flux2-klein", edited(some_image(48, 64)), {}, "48x64; .* at least 64 pixels a side"),
    "a long one": ("tiny-flux2-klein", edited(some_image(64, 576)), {}, "64x576; .* at most 8:1; crop it"),
    "a model that sees one": (
        "tiny-flux-kontext", edited(SECOND), {}, "edits one image and sees no others; take out image_2 .* of FLUX.2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_shown_is_refused(tiny_models: dict[str, Path], case: str) -> None:
    folder, latent, more, message = REFUSED[case]
    with pytest.raises(InvalidParameter, match=message):
        edit(tiny_models[folder], latent, **more)


def test_each_reference_takes_memory_of_a_step(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    handle = handle_for(tiny_models["tiny-flux2-klein"])
    from neurolux.planning import costs
    from neurolux.stages.sample import plan_sample, task_memory

    loaded, needed = borrow(handle), []
    for references in ([], [SECOND], [SECOND, THIRD]):
        request = plan_sample(handle.model, None, edited(*references)(loaded), 7, 2)
        request = replace(request, references=replace(request.references, images=request.source.references))
        assert request.seen(flux2.FAMILY) == 1024 * 1024 + sum(each.shape[1] * each.shape[2] for each in references)
        needed.append(task_memory(loaded, request))
    assert needed == sorted(set(needed))
    plans = [costs.step_flops(flux2.FAMILY.costs, loaded.shapes["transformer"], Workload(1024, 1024, seen=seen))
             for seen in (0, 1024 * 1024)]  # fmt: skip
    assert plans[1] > 1.9 * plans[0]


def graph_of(model: str, **images: Any) -> dict[str, Any]:
    """An edit with further images, each an EmptyImage."""
    graph = text_to_image(model, steps=1)
    for name, (width, height) in {"image": (64, 64), **images}.items():
        graph[name] = node("EmptyImage", width=width, height=height, batch_size=1, color=0x80FF20)
    graph["latent"] = node(
        "NeuroLuxImageToEdit", pipeline=["load", 0], fit="crop", width=64, height=64, batch_size=1,
        **{name: [name, 0] for name in ("image", *images)},
    )  # fmt: skip
    return graph


NODES = {
    "two more": ("tiny-flux2-klein", {"image_2": (96, 80), "image_3": (64, 64)}, ""),
    "too small": ("tiny-flux2-klein", {"image_3": (32, 80)}, "image_3 is 32x80; tiny-flux2-klein takes images of"),
    "one too many": (
        "tiny-flux-kontext",
        {"image_2": (64, 64)},
        "tiny-flux-kontext edits one image .*take out image_2",
    ),
}


@pytest.mark.parametrize("case", NODES)
def test_image_to_edit_takes_further_images(comfyui: ComfyServer, case: str) -> None:
    model, images, message = NODES[case]
    run = comfyui.run(graph_of(model, **images))
    assert run.status == ("error" if message else "success"), run.error_text
    assert not message or re.search(message, run.error_text)
    # a model that was refused before anything of it was used would outlast /free, for which later tests wait
    comfyui.post("/neurolux/unload", {"model": model})
