"""What a seed means: the noise that a model begins with, in one type and in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")


def first_latents(folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What the scheduler's first step begins with, in fp32."""
    from neurolux.stages import sample

    from tests.pack.pipelines import borrow, handle_for, sample_with

    found: list[torch.Tensor] = []

    class Noted(sample.SampleProgress):
        def start(self, index: int, latents: torch.Tensor) -> None:
            found.append(latents.float())
            super().start(index, latents)

    monkeypatch.setattr(sample, "SampleProgress", Noted)
    handle = handle_for(folder, precision=precision)
    sample_with(borrow(handle), handle, steps=1)
    return found[0].flatten()


@pytest.mark.parametrize("model", ["tiny-flux-schnell", "tiny-sdxl"])
@pytest.mark.parametrize(("noise", "same"), [("diffusers", False), ("fp32", True)])
def test_a_seed_has_the_same_noise_in_every_type_only_if_it_is_drawn_in_one(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, model: str, noise: str, same: bool
) -> None:
    monkeypatch.setenv("NEUROLUX_NOISE", noise)
    drawn = [first_latents(tiny_models[model], precision, monkeypatch) for precision in ("fp32", "bf16")]
    correlation = torch.corrcoef(torch.stack(drawn))[0, 1].item()
    assert (correlation > 0.999) if same else (abs(correlation) < 0.2)


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.stages.noise import noise_drawn

    monkeypatch.setenv("NEUROLUX_NOISE", "fp64")
    pipe: Any = None
    with pytest.raises(InvalidParameter, match="NEUROLUX_NOISE is 'fp64'; use diffusers or fp32"), noise_drawn(pipe):
        pass
