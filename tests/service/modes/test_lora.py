"""The lora mode over the service: LoRAs on the starter change the image, by as much as they are told to."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bridge.client import ClientError, ImageGenClient
from tests import tiny_adapters
from tests.service.conftest import Service

STARTER = Path(__file__).parents[3] / "custom_nodes" / "neurolux" / "models" / "starter"
PROMPT = "red apple, blue background"


@pytest.fixture(scope="module", autouse=True)
def loras(service: Service) -> None:
    """Two LoRAs for the starter, where ComfyUI finds them."""
    folder = service.settings.models / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in (("one", 5), ("two", 6)):
        tiny_adapters.write_peft(folder / f"starter-{name}.safetensors", STARTER, seed=seed)
    state = tiny_adapters.peft_state(STARTER, seed=7, rank=2, text=False)
    absent = {f"transformer.absent.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    save_file(state | absent, folder / "starter-partly.safetensors")


def draw(client: ImageGenClient, **parameters: Any) -> np.ndarray:
    answer = client.run_mode("lora", **{"prompt": PROMPT, "model": "starter", "seed": 1, **parameters})
    (data,) = client.images(answer)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def test_a_lora_acts_by_its_strength_and_not_at_all_at_0(client: ImageGenClient) -> None:
    answer = client.generate(PROMPT, model="starter", seed=1)
    plain = np.asarray(Image.open(io.BytesIO(client.images(answer)[0])).convert("RGB")).astype(float)
    one = {"lora": "starter-one.safetensors"}
    assert np.array_equal(draw(client), plain)
    assert np.array_equal(draw(client, **one, lora_strength=0.0), plain)
    little, much = draw(client, **one, lora_strength=0.1), draw(client, **one, lora_strength=1.0)
    assert np.abs(much - plain).mean() > np.abs(little - plain).mean() > 0
    assert np.array_equal(much, draw(client, **one))


def test_several_act_together_in_any_order(client: ImageGenClient) -> None:
    both = draw(client, loras="starter-one.safetensors: 0.3\nstarter-two.safetensors: 0.2")
    turned = draw(client, lora="starter-two.safetensors", lora_strength=0.2, loras="starter-one.safetensors: 0.3")
    assert np.array_equal(both, turned)
    assert not np.array_equal(both, draw(client, loras="starter-one.safetensors: 0.3"))


def test_layers_that_are_not_used_are_told_in_every_answer(client: ImageGenClient) -> None:
    """Also in that of a job which ComfyUI answers from its cache."""
    request = {"prompt": PROMPT, "model": "starter", "seed": 1, "lora": "starter-partly.safetensors"}
    answers = [client.run_mode("lora", **request) for _ in range(2)]
    (warning,) = answers[0].warnings
    assert re.search(r"starter-partly\.safetensors: (\d+) of (\d+) layers are in use by starter", warning), warning
    assert answers[1].warnings == answers[0].warnings


def test_what_is_wrong_is_said(client: ImageGenClient) -> None:
    with pytest.raises(ClientError, match=r"lora 'nobody\.safetensors' is not one of none, .*starter-one\.safetensors"):
        draw(client, lora="nobody.safetensors")
    with pytest.raises(ClientError, match="'starter-one: a lot' is not 'file: strength'"):
        draw(client, loras="starter-one: a lot")
    with pytest.raises(ClientError, match="lora_strength 5.* is above the maximum of 4"):
        draw(client, lora="starter-one.safetensors", lora_strength=5.0)
