"""Orthogonal blocks that multiply a layer's weight (OFT, BOFT): outputs in LyCORIS and kohya, inputs in peft."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .settings import SettingsMissing


@dataclass(frozen=True)
class Rotation:
    """Multiplies the weight's outputs with orthogonal blocks, made of skew ones (OFT), in stages (BOFT)."""

    skew: torch.Tensor
    """(blocks, side, side), or (stages, blocks, side, side)."""
    rescale: torch.Tensor | None = None
    """(outputs,)."""

    @property
    def shape(self) -> tuple[int | None, int | None]:
        return self.skew.shape[-3] * self.skew.shape[-1], None

    def chosen(self, rows: torch.Tensor) -> Rotation:
        side = self.skew.shape[-1]
        if self.skew.dim() > 3 or len(rows) % side:
            raise ValueError("a rotation across joined layers (OFT or BOFT)")
        whole = rows.view(-1, side)
        if (whole[:, 0] % side).any() or not torch.equal(whole, whole[:, :1] + torch.arange(side)):
            raise ValueError("a rotation across joined layers (OFT or BOFT)")
        return Rotation(self.skew[whole[:, 0] // side], None if self.rescale is None else self.rescale[rows])


@dataclass(frozen=True)
class TurnedInputs:
    """Multiplies the weight's inputs with orthogonal blocks, stage after stage, and its outputs with factors."""

    turns: torch.Tensor
    """(stages, blocks, side, side); inputs stand on the left of a block."""
    shared: bool = False
    """Whether its one block turns all inputs, side by side."""
    gains: torch.Tensor | None = None
    """(outputs,)."""

    @property
    def shape(self) -> tuple[int | None, int | None]:
        inputs = self.turns.shape[1] * self.turns.shape[-1]
        return None if self.gains is None else len(self.gains), None if self.shared else inputs

    def chosen(self, rows: torch.Tensor) -> TurnedInputs:
        return TurnedInputs(self.turns, self.shared, None if self.gains is None else self.gains[rows])


def butterfly(stage: int, side: int, inputs: int) -> torch.Tensor:
    """Where BOFT puts the inputs before a stage: of each group of blocks the halves with even numbers come first."""
    half = side // 2
    halves = torch.arange(2 ** (stage + 1))
    order = torch.cat([halves[::2], halves[1::2]])
    within = (order[:, None] * half + torch.arange(half)).flatten()
    return (torch.arange(0, inputs, len(within))[:, None] + within).flatten()


def rotation(own: Mapping[str, torch.Tensor], most: float) -> Rotation:
    """OFT and BOFT of LyCORIS and kohya. ``most``: what the length of all blocks together is held to; 0: nothing."""
    blocks = own["oft_blocks"]
    if blocks.dim() not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError(f"OFT blocks of the shape {tuple(blocks.shape)}")
    skew = blocks - blocks.transpose(-1, -2)
    if most > 0 and not skew.is_meta:
        skew = skew * min(1.0, most / (float(skew.norm()) + 1e-8))
    rescale = own.get("rescale")
    made = Rotation(skew, None if rescale is None else rescale.flatten())
    if made.rescale is not None and len(made.rescale) != made.shape[0]:
        raise ValueError("OFT with a rescale of another size")
    return made


def oft_of_peft(own: Mapping[str, torch.Tensor], stated: Mapping[str, Any] | None) -> TurnedInputs:
    """OFT of peft. ``stated``: its configuration, which says how blocks are made of the values in the file."""
    values = own["oft_R"]
    side = (1 + math.isqrt(1 + 8 * values.shape[-1])) // 2
    if values.dim() != 2 or side * (side - 1) // 2 != values.shape[1]:
        raise ValueError("OFT of a peft before 0.14, which newer ones cannot read")
    if stated is None:
        raise SettingsMissing("OFT of peft")
    if "peft_version" not in stated:
        raise ValueError("OFT of a peft before 0.18, which newer ones read in another way")
    rows, columns = torch.triu_indices(side, side, 1)
    skew = torch.zeros(len(values), side, side, device=values.device)
    skew[:, rows, columns] = values
    skew = skew - skew.transpose(1, 2)
    if stated.get("coft"):
        most = float(stated.get("eps", 6e-5)) / len(values) ** 0.5
        skew = skew * (most / skew.flatten(1).norm(dim=1).clamp_min(1e-30)).clamp_max(1)[:, None, None]
    unit = torch.eye(side, device=values.device)
    if not stated.get("use_cayley_neumann", True):
        turn = torch.linalg.solve(unit + skew, unit - skew)
    else:
        turn = neumann(skew, int(stated.get("num_cayley_neumann_terms", 5)))
    return TurnedInputs(turn[None], shared=bool(stated.get("block_share")))


def neumann(skew: torch.Tensor, terms: int) -> torch.Tensor:
    """The first terms of Cayley's transform as a series, of which the last one counts once."""
    terms = max(terms, 4) if terms > 2 else terms  # peft computes as many for three
    made, power = torch.eye(skew.shape[-1], device=skew.device).expand_as(skew), skew
    for number in range(1, terms):
        made = made + power * (1 if number == terms - 1 and terms > 2 else 2)
        power = power @ skew
    return made


def boft_of_peft(own: Mapping[str, torch.Tensor]) -> TurnedInputs:
    """BOFT of peft."""
    blocks, gains = own["boft_R"], own.get("boft_s")
    if blocks.dim() != 4 or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError(f"BOFT blocks of the shape {tuple(blocks.shape)}")
    side, count = blocks.shape[-1], blocks.shape[1]
    if len(blocks) > 1 and (side % 2 or count % 2 ** (len(blocks) - 1)):
        raise ValueError(f"BOFT in {len(blocks)} stages with {count} blocks of {side}")
    skew, unit = (blocks - blocks.transpose(-1, -2)) / 2, torch.eye(side, device=blocks.device)
    turns = torch.linalg.solve(unit + skew, unit - skew)
    return TurnedInputs(turns, gains=None if gains is None else gains.flatten())
