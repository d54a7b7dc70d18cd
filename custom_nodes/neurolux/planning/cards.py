"""What is known of cards that are not at hand: memory, number formats, rates. From ``cards.toml``. Pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from .records import Machine

FILE = Path(__file__).with_name("cards.toml")
ACHIEVED_SHARE = 0.5
"""What a denoiser achieves of a card's peak. FLUX.1 dev, uncompiled, achieves 0.32 on an H100 (28 steps in 6.57 s,
diffusers-torchao) and 0.66 on an L20 (26.4 s, ParaAttention); published figures for other cards are in between."""
LANE_RATES = {3: 0.78e9, 4: 1.56e9, 5: 3.1e9}
"""Bytes a second that a lane of each generation of PCIe delivers: 12.5, 25 and 50 GB/s over 16 lanes."""
BF16_SINCE = 8.0
"""The first compute capability with bf16 (Ampere)."""
PREFIXES = re.compile(r"\b(nvidia|geforce|graphics|card)\b")


@dataclass(frozen=True)
class Card:
    """One card. Peaks in FLOP/s by number format, rates in bytes a second."""

    name: str
    vram: int
    """Bytes."""
    capability: float
    peaks: Mapping[str, float]
    bandwidth: float
    pcie: tuple[int, int]
    """Generation and lanes."""
    source: Literal["datasheet", "pages", "computed"]
    names: tuple[str, ...] = ()
    """What drivers call it besides."""
    pages: tuple[str, ...] = ()

    @property
    def bf16(self) -> bool:
        """Whether it computes in bf16."""
        return self.capability >= BF16_SINCE

    @property
    def fp16(self) -> bool:
        """Whether fp16 is faster than fp32 and safe."""
        return "fp16" in self.peaks

    @property
    def transfer_rate(self) -> float:
        """Bytes a second from pinned RAM, in a slot with all of its lanes."""
        generation, lanes = self.pcie
        return LANE_RATES[generation] * lanes

    def described(self, machine: Machine) -> Machine:
        """``machine`` with this card's number formats and rates."""
        peak = self.peaks.get("fp16", self.peaks["fp32"])
        return replace(
            machine, card=self.name, bf16=self.bf16, fp16=self.fp16, transfer_rate=self.transfer_rate,
            compute_rate=peak * ACHIEVED_SHARE, fp32_rate=self.peaks["fp32"] * ACHIEVED_SHARE, rates_from="card",
        )  # fmt: skip


@cache
def known_cards() -> Mapping[str, Card]:
    """By name, the smallest first within each generation. Raises TypeError for an unknown key of the file."""
    document = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: parse_card(name, entry) for name, entry in document["cards"].items()}


def parse_card(name: str, entry: Mapping[str, Any]) -> Card:
    """One ``[cards.NAME]`` table."""
    generation, lanes = entry["pcie"]
    return Card(**{
        **{key: value for key, value in entry.items() if key != "tflops"},
        "name": name,
        "vram": int(entry["vram"]) * 2**30,
        "peaks": {kind: tera * 1e12 for kind, tera in entry["tflops"].items()},
        "bandwidth": entry["bandwidth"] * 1e9,
        "pcie": (generation, lanes),
        "names": tuple(entry.get("names", ())),
        "pages": tuple(entry.get("pages", ())),
    })  # fmt: skip


def find_card(text: str) -> Card | None:
    """The card that people or drivers call ``text``; None if it is not known. A laptop's is another card."""
    wanted = plain(text)
    return next((card for card in known_cards().values() if wanted in map(plain, (card.name, *card.names))), None)


def plain(name: str) -> str:
    """``name`` without its maker, its spaces and hyphens, in lower case."""
    return "".join(part for part in PREFIXES.sub(" ", name.lower()) if part.isalnum())
