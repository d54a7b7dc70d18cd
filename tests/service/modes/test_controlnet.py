"""controlnet-canny, -depth and -pose over the service: the starter, with a ControlNet and networks of random values."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel
from PIL import Image, ImageDraw

from bridge.client import ClientError, ImageGenClient
from tests.service.conftest import Service
from tests.tiny_adapters import randomized
from tests.tiny_preprocessors import write_preprocessors

STARTER = Path(__file__).parents[3] / "custom_nodes" / "neurolux" / "models" / "starter"
PROMPT = "red apple, blue background"


@pytest.fixture(scope="module", autouse=True)
def networks(service: Service) -> None:
    """A union ControlNet of the starter's shape, and tiny preprocessors, where ComfyUI finds them."""
    folder = service.settings.models / "controlnet" / "starter-union"
    if not folder.is_dir():
        config = json.loads((STARTER / "transformer" / "config.json").read_text())
        names = (
            "patch_size", "in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
            "pooled_projection_dim", "guidance_embeds", "axes_dims_rope",
        )  # fmt: skip
        shape = {name: config[name] for name in names}
        torch.manual_seed(31)
        module = FluxControlNetModel(**shape, num_layers=1, num_single_layers=1, num_mode=7)
        randomized(module, 31).save_pretrained(folder)
    write_preprocessors(service.settings.models / "preprocessors")


def drawing() -> Image.Image:
    """A white disc on grey, larger than the result and not square."""
    image = Image.new("RGB", (300, 200), (90, 90, 90))
    ImageDraw.Draw(image).ellipse((90, 40, 210, 160), fill=(255, 255, 255))
    return image


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue()


def draw(client: ImageGenClient, kind: str, **parameters: Any) -> np.ndarray:
    answer = client.run_mode(
        f"controlnet-{kind}",
        **{"prompt": PROMPT, "model": "starter", "seed": 1, "control_image": png(drawing()), **parameters},
    )
    (data,) = client.images(answer)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def text_to_image(client: ImageGenClient) -> np.ndarray:
    answer = client.generate(PROMPT, model="starter", seed=1)
    return np.asarray(Image.open(io.BytesIO(client.images(answer)[0])).convert("RGB"))


def fitted() -> Image.Image:
    """The drawing as the mode fits it to 128x128."""
    return drawing().crop((50, 0, 250, 200)).resize((128, 128), Image.Resampling.LANCZOS)


def test_canny_finds_the_edges_that_a_ready_control_image_would_show(
    client: ImageGenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(STARTER.parents[2]))
    from neurolux.preprocess.canny_filter import canny

    edges = canny(np.asarray(fitted()).astype(np.int32), 100, 200)
    assert 0.01 < edges.mean() < 0.1
    ready = png(Image.fromarray((edges * 255).astype(np.uint8)).convert("RGB"))
    made = draw(client, "canny")
    assert made.shape == (128, 128, 3)
    assert np.array_equal(made, draw(client, "canny", control_image=ready, preprocess=False))
    assert not np.array_equal(made, draw(client, "canny", preprocess=False))


def test_it_guides_by_its_strength_and_for_its_share_of_the_steps(client: ImageGenClient) -> None:
    plain = text_to_image(client)
    assert np.array_equal(plain, draw(client, "canny", control_strength=0.0))
    full, late = draw(client, "canny", control_end=1.0), draw(client, "canny", control_start=0.8, control_end=1.0)
    changed = [np.abs(made.astype(float) - plain).mean() for made in (full, late)]
    assert changed[0] > changed[1] > 0


def test_a_part_of_the_steps_that_covers_none_is_told(client: ImageGenClient) -> None:
    """The first percent of a few steps is less than one step."""
    request = {"prompt": PROMPT, "model": "starter", "seed": 1, "control_image": png(drawing())}
    answers = [client.run_mode("controlnet-canny", **request, control_end=0.01) for _ in range(2)]
    for answer in answers:
        (warning,) = answer.warnings
        assert "starter-union had no effect: from 0 to 0.01 it covers none of the" in warning
    assert client.run_mode("controlnet-canny", **request).warnings == []


def test_a_transparent_control_image_is_told(client: ImageGenClient) -> None:
    image = drawing().convert("RGBA")
    image.putalpha(100)
    answer = client.run_mode(
        "controlnet-canny", prompt=PROMPT, model="starter", seed=1, control_image=png(image), control_end=1.0
    )
    (warning,) = answer.warnings
    assert "Control Image is partly transparent and its transparency is not used" in warning


@pytest.mark.parametrize("kind", ["depth", "pose"])
def test_a_control_image_is_made_of_any_image(client: ImageGenClient, kind: str) -> None:
    made = draw(client, kind)
    assert np.array_equal(made, draw(client, kind))
    assert not np.array_equal(made, draw(client, kind, preprocess=False))
    assert not np.array_equal(made, text_to_image(client))


def test_what_is_wrong_is_said(client: ImageGenClient) -> None:
    with pytest.raises(ClientError, match="control_image is required"):
        client.run_mode("controlnet-canny", prompt=PROMPT, model="starter")
    with pytest.raises(ClientError, match="controlnet 'mine' is not one of auto, starter-union, flux-union-pro-2"):
        draw(client, "canny", controlnet="mine")
    with pytest.raises(ClientError, match=r"start 0\.9 is not before end 0\.5"):
        draw(client, "canny", control_start=0.9, control_end=0.5)


def test_the_models_list_shows_what_can_be_had(client: ImageGenClient, imagegen: Any) -> None:
    found = {(one.kind, one.name): one for one in client.model_info().adapters}
    assert found["controlnet", "starter-union"].status == "ready"
    assert found["preprocessor", "vitpose-base"].status == "ready"
    catalog = found["controlnet", "sdxl-union-promax"]
    assert (catalog.license, catalog.status, catalog.bytes) == ("Apache-2.0", "missing", 2_516_000_000)
    listing = imagegen("models").stdout
    assert "ControlNet sdxl-union-promax, for sdxl, 2.5 GB, Apache-2.0, missing" in listing
    assert "Preprocessor rt-detr, 172 MB, Apache-2.0, ready" in listing
