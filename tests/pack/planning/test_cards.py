"""The table of cards, and what a plan makes of it: estimates of computing, and advice of what is faster."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
from neurolux.planning.cards import ACHIEVED_SHARE, Card, find_card, known_cards
from neurolux.planning.cards import FILE as CARDS_FILE

from tests.pack.plans import GB, card, plan


@pytest.mark.parametrize("known", known_cards().values(), ids=lambda known: known.name)
def test_each_card_is_possible_and_says_where_it_is_from(known: Card) -> None:
    assert 4 * 2**30 <= known.vram <= 192 * 2**30
    assert known.pcie[0] in (3, 4, 5)
    assert known.pcie[1] in (8, 16)
    peaks = [known.peaks[kind] for kind in ("fp32", "fp16", "fp8") if kind in known.peaks]
    assert peaks == sorted(peaks)
    assert ("fp8" in known.peaks) == (known.capability >= 8.9)
    assert known.bf16 == (known.capability >= 8.0)
    pages = tomllib.loads(CARDS_FILE.read_text("utf-8"))["pages"]
    assert set(known.pages) <= set(pages)
    assert known.pages or known.source == "computed"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA GeForce RTX 3060", "RTX 3060"),
        ("rtx 3060 ti", "RTX 3060 Ti"),
        ("rtx2080ti", "RTX 2080 Ti"),
        ("Tesla T4", "T4"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Radeon RX 7900", None),
        ("", None),
    ],
)
def test_a_card_is_found_by_what_drivers_and_people_call_it(text: str, name: str | None) -> None:
    found = find_card(text)
    assert (found.name if found else None) == name


def test_computing_is_estimated_from_the_card() -> None:
    cards = known_cards()
    fast, slow = (
        plan("flux-dev", cards[name].described(card(24))) for name in ("RTX 5090", "RTX 3060")
    )  # fmt: skip
    peaks = cards["RTX 5090"].peaks["fp16"] / cards["RTX 3060"].peaks["fp16"]
    assert slow.compute_seconds == pytest.approx(fast.compute_seconds * peaks, rel=0.01)
    assert any("RTX 3060: computing is estimated at 12.8 TFLOP/s in bf16" in reason for reason in slow.reasons)


def test_fp32_is_estimated_without_tensor_cores() -> None:
    turing = known_cards()["RTX 2080"].described(card(8))
    found = plan("flux-schnell", turing)
    assert {part.compute for part in found.components.values()} == {"fp32"}
    flops = plan("flux-schnell", known_cards()["RTX 3090"].described(card(8))).compute_seconds * 71.2
    assert found.compute_seconds * 10.1 == pytest.approx(flops, rel=0.01)
    assert turing.fp32_rate == 10.1e12 * ACHIEVED_SHARE


def test_a_plan_that_waits_for_the_disk_says_what_is_faster() -> None:
    machine = replace(card(6, 14), disk_rate=0.5e9, disk_from="given")
    found = plan("flux-schnell", machine)
    assert found.offload == "disk"
    assert "weights are read at 0.5 GB/s (as given)" in found.reasons
    (advice,) = (reason for reason in found.reasons if reason.startswith("choose precision nf4 for speed"))
    assert "with offload stream, a request would take about" in advice
    assert "instead of 3 min" in advice
    followed = plan("flux-schnell", machine, precision="nf4")
    assert (followed.offload, followed.fits) == ("stream", True)
    assert followed.peak_ram <= 14 * GB
    assert followed.compute_seconds + followed.transfer_seconds < 0.1 * found.transfer_seconds


def test_layers_are_not_copied_one_by_one_for_a_fraction_of_a_second() -> None:
    found = plan("sdxl-base", known_cards()["RTX 2060"].described(card(6, 14)))
    assert found.offload == "stream"
