"""The modes that every family can have, over REST: each with a tiny model of each family that there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from neurolux.families.registry import families, family_of
from neurolux.families.spec import Task

from bridge.client import ClientError, ImageGenClient
from tests.service.modes.test_images import png, run
from tests.tiny_models import WRITERS

SIDE = 64
TASKS: tuple[Task, ...] = ("text-to-image", "image-to-image", "inpaint")
"""Modes by the names of their tasks."""
FURTHER = ({}, {"image_2": (96, 80)}, {"image_2": (96, 80), "image_3": (64, 128)})
"""Images beside the one that is edited, and their sizes."""


def tiny_model(client: ImageGenClient, family: str) -> str:
    """The first tiny model of the family."""
    known = {model.name for model in client.model_info().models if model.family == family}
    found = next((name for name in WRITERS if name in known), None)
    assert found is not None, f"tests/tiny_models.py has no model of {family}"
    return found


def picture(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """An image of coloured noise, (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def made(client: ImageGenClient, task: Task, model: str) -> None:
    """Run the mode, and compare what it makes with what it was given."""
    common: dict[str, Any] = {"prompt": "a cat", "model": model, "num_inference_steps": 2}
    if task == "text-to-image":
        one, other = (run(client, task, **common, width=SIDE, height=SIDE, seed=seed) for seed in (1, 2))
    elif task == "image-to-image":
        one, other = (run(client, task, **common, image=png(picture(seed)), strength=0.5) for seed in (1, 2))
    else:
        mask = np.zeros((SIDE, SIDE, 3), np.uint8)
        mask[16:48, 16:48] = 255
        one, other = run(client, task, **common, image=png(picture(1)), mask=png(mask), feather=0), picture(1)
        kept = mask[..., 0] == 0
        assert np.array_equal(one[kept], other[kept])
    assert one.shape == other.shape == (SIDE, SIDE, 3)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", families())
def test_every_family_runs_the_mode_or_is_refused_by_name(client: ImageGenClient, family: str, task: Task) -> None:
    model = tiny_model(client, family)
    if (task, None) in family_of(family).pipelines:
        made(client, task, model)
        return
    others = ", ".join(one.title for one in families().values() if (task, None) in one.pipelines)
    with pytest.raises(ClientError) as refused:
        made(client, task, model)
    title = family_of(family).title
    assert str(refused.value) in (
        f"{model} is a model of {title}, which has no {task} here; choose a model of {others}",
        f"{model} edits by an instruction and has no strength; leave strength at 1, or choose another model for image "
        "to image",
    )


@pytest.mark.parametrize("family", [name for name, family in families().items() if ("edit", None) in family.pipelines])
def test_every_family_that_edits_sees_several_images_or_refuses_the_second(client: ImageGenClient, family: str) -> None:
    known = client.model_info().models
    model = next(each.name for each in known if each.family == family and each.name in WRITERS and edits(each.name))
    common = {"prompt": "a cat", "model": model, "num_inference_steps": 1, "width": SIDE, "height": SIDE}

    def made(further: dict[str, tuple[int, int]]) -> np.ndarray:
        more = {name: png(picture(2, size)) for name, size in further.items()}
        return run(client, "edit", **common, image=png(picture(1)), **more)

    if family_of(family).references is None:
        with pytest.raises(ClientError, match=f"{model} edits one image .* take out image_2, or choose"):
            made(FURTHER[1])
        return
    images = [made(further) for further in FURTHER]
    assert all(image.shape == (SIDE, SIDE, 3) for image in images)
    assert not any(np.array_equal(one, other) for one, other in zip(images, images[1:], strict=False))


def edits(name: str) -> bool:
    """Whether the tiny model of this name edits by instruction."""
    return "kontext" in name or "klein" in name
