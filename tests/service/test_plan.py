"""A memory plan through the whole service."""

from __future__ import annotations

import pytest

from bridge.client import ClientError, ImageGenClient


def test_a_plan_for_the_worker_s_machine_and_for_any_card(client: ImageGenClient) -> None:
    here = client.plan("tiny-flux-schnell")
    assert (here.machine.device, here.plan.fits) == ("cpu", True)
    card = client.plan("flux-dev", vram="8GB", ram="64GB", width=1024, steps=20)
    assert card.picture.steps == 20
    assert card.plan.components["transformer"].placement == "stream"
    assert card.plan.peak_vram <= card.machine.free_vram
    assert card.plan.reasons


def test_an_unknown_model_is_404_with_the_known_names(client: ImageGenClient) -> None:
    with pytest.raises(ClientError, match="known are starter, flux-schnell, flux-dev, sdxl-lightning") as error:
        client.plan("nope")
    assert (error.value.status, error.value.error.code) == (404, "unknown_model")


def test_a_bad_value_is_422_with_the_remedy(client: ImageGenClient) -> None:
    with pytest.raises(ClientError, match="write 8GB, 7.5GB or 8GiB") as error:
        client.plan("flux-dev", vram="much")
    assert (error.value.status, error.value.error.field) == (422, "vram")
