"""What ``auto`` chooses: for every catalog model on every card, and that more memory is never worse. No weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from neurolux.planning.costs import CONTEXT_BYTES

from tests.pack.plans import GB, MODELS, card, cpu, plan

CARDS = (4, 6, 8, 12, 16, 24, 80)
RAMS = (8, 16, 32, 64)
QUALITY = {"fp32": 3, "bf16": 3, "fp16": 3, "as-is": 3, "fp8": 2, "int8": 1, "nf4": 0}
# What auto chooses. Beside a card 64 GB of RAM are free.
ON_CARDS = {
    ("starter", None): {size: ("bf16", "none", None) for size in CARDS},
    ("sd15", None): {size: ("bf16", "none", None) for size in CARDS},
    **{
        (name, 1024): {
            **{size: ("bf16", "stream", None) for size in (4, 6, 8, 12, 16, 24)},
            80: ("bf16", "none", None),
        }
        for name in ("z-image-turbo", "z-image")
    },
    **{
        (name, 1024): {
            **{size: ("bf16", "stream", None) for size in (4, 6, 8, 12, 16)},
            **{size: ("bf16", "none", None) for size in (24, 80)},
        }
        for name in ("flux2-klein-4b", "flux2-klein-base-4b")
    },
    ("flux2-klein-9b", 1024): {
        4: ("fp8", "sequential", None),
        **{size: ("bf16", "stream", None) for size in (6, 8, 12, 16, 24)},
        80: ("bf16", "none", None),
    },
    ("chroma1-hd", 1024): {
        4: ("bf16", "stream", 512),
        **{size: ("bf16", "stream", None) for size in (6, 8, 12, 16, 24)},
        80: ("bf16", "none", None),
    },
    **{
        (name, 1024): {
            4: ("fp8", "sequential", 512),
            6: ("fp8", "stream", 512),
            8: ("fp8", "stream", None),
            **{size: ("bf16", "stream", None) for size in (12, 16, 24)},
            80: ("bf16", "none", None),
        }
        for name in ("qwen-image-2512", "qwen-image")
    },
    **{
        (name, 1024): {
            4: ("bf16", "sequential", 512),
            6: ("bf16", "sequential", None),
            **{size: ("bf16", "stream", None) for size in (8, 12, 16, 24)},
            80: ("bf16", "none", None),
        }
        for name in ("krea-2-turbo", "krea-2-raw")
    },
    ("flux-schnell", 1024): {
        **{size: ("bf16", "stream", None) for size in (4, 6, 8, 12, 16, 24)},
        80: ("bf16", "none", None),
    },
    ("flux-dev", 1024): {
        **{size: ("bf16", "stream", None) for size in (4, 6, 8, 12, 16, 24)},
        80: ("bf16", "none", None),
    },
    **{
        (name, 1024): {
            **{size: ("bf16", "stream", None) for size in (4, 6, 8, 12, 16, 24)},
            80: ("bf16", "none", None),
        }
        for name in ("flux-krea-dev", "flux-fill-dev", "flux-kontext-dev")
    },
    ("flux-schnell", 512): {
        **{size: ("fp8", "stream", None) for size in (4, 6, 8, 12, 16)},
        24: ("bf16", "stream", None),
        80: ("bf16", "none", None),
    },
    ("flux-dev", 2048): {
        4: ("bf16", "sequential", 512),
        6: ("bf16", "stream", 512),
        8: ("bf16", "stream", 512),
        12: ("bf16", "stream", None),
        16: ("bf16", "stream", None),
        24: ("bf16", "stream", None),
        80: ("bf16", "none", None),
    },
    ("sdxl-lightning", 1024): {
        **{size: ("bf16", "stream", None) for size in (4, 6, 8)},
        **{size: ("bf16", "none", None) for size in (12, 16, 24, 80)},
    },
    **{
        (name, side): {
            **{size: ("bf16", "stream", None) for size in (4, 6, 8)},
            **{size: ("bf16", "none", None) for size in (12, 16, 24, 80)},
        }
        for name, side in (("sdxl-base", 1024), ("sdxl-turbo", 512))
    },
    ("sdxl-lightning", 512): {
        4: ("fp8", "stream", None),
        **{size: ("bf16", "stream", None) for size in (6, 8)},
        **{size: ("bf16", "none", None) for size in (12, 16, 24, 80)},
    },
}
ON_CPU = {
    "starter": {size: ("fp32", "none", None) for size in RAMS},
    "sd15": {size: ("fp32", "none", None) for size in RAMS},
    **{
        name: {
            8: (smallest, "disk", None),
            16: ("bf16", "disk", None),
            32: ("bf16", "none", None),
            64: ("fp32", "none", None),
        }
        for name, smallest in (("z-image-turbo", "nf4"), ("z-image", "bf16"))
    },
    **{
        name: {
            **{size: ("bf16", "disk", None) for size in (8, 16)},
            32: ("fp32", "none", 512),
            64: ("fp32", "none", None),
        }
        for name in ("flux2-klein-4b", "flux2-klein-base-4b")
    },
    "flux2-klein-9b": {**{size: ("bf16", "disk", None) for size in (8, 16, 32)}, 64: ("bf16", "none", None)},
    "chroma1-hd": {
        **{size: ("bf16", "disk", None) for size in (8, 16)},
        32: ("bf16", "none", None),
        64: ("fp32", "none", None),
    },
    **{
        name: {**{size: ("bf16", "disk", None) for size in (8, 16, 32)}, 64: ("bf16", "none", None)}
        for name in ("qwen-image-2512", "qwen-image")
    },
    **{
        name: {**{size: ("bf16", "disk", None) for size in (8, 16, 32)}, 64: ("bf16", "none", None)}
        for name in ("krea-2-turbo", "krea-2-raw")
    },
    "flux-schnell": {**{size: ("bf16", "disk", None) for size in (8, 16, 32)}, 64: ("bf16", "none", None)},
    "flux-dev": {**{size: ("bf16", "disk", None) for size in (8, 16, 32)}, 64: ("bf16", "none", None)},
    **{
        name: {**{size: ("bf16", "disk", None) for size in (8, 16, 32)}, 64: ("bf16", "none", None)}
        for name in ("flux-krea-dev", "flux-fill-dev", "flux-kontext-dev")
    },
    **{
        name: {
            8: ("bf16", "disk", None),
            16: ("fp32", "none", 512),
            32: ("fp32", "none", None),
            64: ("fp32", "none", None),
        }
        for name in ("sdxl-lightning", "sdxl-base")
    },
    "sdxl-turbo": {8: ("bf16", "disk", None), **{size: ("fp32", "none", None) for size in (16, 32, 64)}},
}


def on_cards() -> Iterator[Any]:
    """Every model, size and card of the table."""
    for (name, side), cards in ON_CARDS.items():
        for size, expected in cards.items():
            yield pytest.param(name, side, size, expected, id=f"{name}-{side}-{size}GB")


@pytest.mark.parametrize(("name", "side", "size", "expected"), on_cards())
def test_auto_on_a_card(name: str, side: int | None, size: int, expected: tuple[str, str, int | None]) -> None:
    found = plan(name, card(size), side=side)
    assert (found.precision, found.offload, found.vae_tile) == expected
    for count in (1, 4):
        found = plan(name, card(size), side=side, count=count)
        assert found.fits
        assert found.peak_vram <= size * GB - CONTEXT_BYTES
        assert found.peak_ram <= 64 * GB
        assert found.vae_slicing == (count > 1)


@pytest.mark.parametrize("ram", RAMS)
@pytest.mark.parametrize("name", list(ON_CPU))
def test_auto_on_a_cpu(name: str, ram: int) -> None:
    found = plan(name, cpu(ram))
    assert (found.precision, found.offload, found.vae_tile) == ON_CPU[name][ram]
    assert found.fits
    assert found.peak_vram == 0
    assert found.pinned_ram == 0
    assert found.peak_ram <= ram * GB


def test_every_catalog_model_is_in_the_tables() -> None:
    assert {name for name, _ in ON_CARDS} == set(ON_CPU) == set(MODELS)


@pytest.mark.parametrize(
    ("vram", "ram", "precision", "offload"),
    [
        (8, 30, "fp8", "stream"),  # bf16 would have to come from disk
        (24, 30, "bf16", "stream"),  # RAM need not hold what stays on the card
        (80, 16, "bf16", "none"),
        (24, 20, "bf16", "stream"),
        (8, 8, "bf16", "disk"),
    ],
)
def test_a_small_ram_changes_the_choice(vram: int, ram: int, precision: str, offload: str) -> None:
    found = plan("flux-dev", card(vram, ram))
    assert (found.precision, found.offload, found.fits) == (precision, offload, True)
    assert found.peak_ram <= ram * GB
    assert found.copies_in_ram == (precision == "fp8")


@pytest.mark.parametrize("ram", [14, 30, 64])
@pytest.mark.parametrize("side", [512, 1024])
@pytest.mark.parametrize("name", ["flux-schnell", "flux-dev", "sdxl-lightning"])
def test_more_vram_is_never_slower_nor_leaner(name: str, side: int, ram: int) -> None:
    """A better image may cost time; at the same quality, a larger card loses no more."""
    plans = [plan(name, card(size, ram), side=side) for size in (*range(3, 33), 40, 48, 80)]
    for smaller, larger in pairwise(plans):
        if not smaller.fits:
            continue
        assert larger.fits
        quality = [(QUALITY[found.precision], found.vae_tile is None) for found in (smaller, larger)]
        assert quality[0] <= quality[1]
        if quality[0] == quality[1]:
            assert larger.transfer_seconds <= smaller.transfer_seconds


@pytest.mark.parametrize("name", ["flux-dev", "sdxl-lightning"])
def test_more_ram_is_never_slower_nor_leaner_on_a_cpu(name: str) -> None:
    plans = [plan(name, cpu(ram)) for ram in (*range(5, 50), 64, 80)]
    for smaller, larger in pairwise(plans):
        if smaller.fits:
            assert larger.fits
            assert larger.transfer_seconds <= smaller.transfer_seconds
            assert larger.components["vae"].bytes >= smaller.components["vae"].bytes or smaller.precision == "as-is"
