"""What a layer of a LoRA file adds to a weight: two factors, a Kronecker product, or a whole matrix.

LoRA, LoCon and DoRA are factors already. LoKr stays a Kronecker product, whose parts are tiny. LoHa becomes factors of
the product of its ranks, or the whole matrix where that is smaller. Everything is exact but for rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Change:
    """``up @ down`` (2 or 4 dimensions), or ``kron(up, down)``, times the scale, which is in ``down`` already."""

    down: torch.Tensor
    up: torch.Tensor
    kron: bool = False
    dora: torch.Tensor | None = None
    """The magnitude of each row of the changed weight (DoRA)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        if self.kron:
            return self.up.shape[0] * self.down.shape[0], self.up.shape[1] * self.down.shape[1]
        return self.up.shape[0], self.down.shape[1]

    def rows(self, start: int, count: int) -> Change:
        """The part of some rows of the weight."""
        dora = None if self.dora is None else self.dora[start : start + count]
        if not self.kron:
            return Change(self.down, self.up[start : start + count], dora=dora)
        inner = self.down.shape[0]
        if start % inner == 0 and count % inner == 0:
            return Change(self.down, self.up[start // inner : (start + count) // inner], True)
        return whole(torch.kron(self.up, self.down)[start : start + count])

    def swapped(self) -> Change:
        """With the two halves of the rows exchanged."""
        half = self.shape[0] // 2
        first, second = self.rows(0, half), self.rows(half, half)
        if self.kron and first.kron:
            return Change(self.down, torch.cat([second.up, first.up]), True)
        if self.kron:
            return whole(torch.cat([dense(second), dense(first)]))
        dora = None if self.dora is None else torch.cat([self.dora[half:], self.dora[:half]])
        return Change(self.down, torch.cat([second.up, first.up]), dora=dora)


def shaped(change: Change, kernel: tuple[int, ...]) -> Change:
    """The change of a convolution with this kernel, or of a linear layer (an empty kernel).

    Some files have all inputs of a convolution in one dimension, and 1x1 convolutions as matrices or the reverse.
    """
    if not kernel and change.down.dim() == 4 and change.down.shape[2:] == (1, 1):
        return Change(change.down[:, :, 0, 0], change.up.flatten(1), dora=change.dora)
    if not kernel or change.down.dim() > 2:
        return change
    area = kernel[0] * kernel[1]
    if change.kron or change.down.shape[1] % area:
        matrix = dense(change)
        return whole(matrix.view(matrix.shape[0], -1, *kernel)) if matrix.shape[1] % area == 0 else change
    down = change.down.view(change.down.shape[0], -1, *kernel)
    return Change(down, change.up.flatten(1)[:, :, None, None], dora=change.dora)


def dense(change: Change) -> torch.Tensor:
    """The matrix of a linear change."""
    return torch.kron(change.up, change.down) if change.kron else change.up @ change.down


def whole(matrix: torch.Tensor) -> Change:
    """A matrix (or the weight of a convolution) as factors, one of which is the identity."""
    outputs, inputs = matrix.shape[:2]
    if matrix.dim() > 2:
        return Change(matrix, torch.eye(outputs)[:, :, None, None])
    return Change(matrix, torch.eye(outputs)) if outputs <= inputs else Change(torch.eye(inputs), matrix)


def change_of(tensors: Mapping[str, torch.Tensor]) -> Change:
    """What the tensors of a layer add. Raises ValueError, which names what is missing or unknown."""
    own = {kind: value.to(torch.float32) for kind, value in tensors.items()}
    alpha = float(own["alpha"].flatten()[0]) if "alpha" in own else None
    if "down" in own or "up" in own:
        change = plain(own, alpha)
    elif any(kind.startswith("lokr_") for kind in own):
        change = lokr(own, alpha)
    elif any(kind.startswith("hada_") for kind in own):
        change = loha(own, alpha)
    else:
        raise ValueError(f"tensors called {', '.join(own)}")
    if "dora" not in own:
        return change
    if change.kron or "down" not in own or change.down.dim() > 2:
        raise ValueError("DoRA on something else than a linear LoRA")
    dora = own["dora"]
    if dora.numel() != change.shape[0] or (dora.dim() > 1 and dora.shape[0] == 1 and change.shape[0] > 1):
        raise ValueError("DoRA along the inputs")
    return Change(change.down, change.up, dora=dora.flatten())


def halved(down: torch.Tensor, up: torch.Tensor, scale: float) -> Change:
    """Both factors with the scale shared between them, as diffusers does, so that neither is very small."""
    first, second = scale, 1.0
    while 0 < first * 2 < second:
        first, second = first * 2, second / 2
    return Change(down * first, up * second)


def plain(own: Mapping[str, torch.Tensor], alpha: float | None) -> Change:
    """LoRA and LoCon."""
    if "down" not in own or "up" not in own:
        raise ValueError("half a LoRA layer: lora_A or lora_B is missing")
    down, up = own["down"], own["up"]
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    if "mid" in own:
        down = torch.einsum("oikl,ic->ockl", own["mid"], down.flatten(1))
    if down.dim() == 4 and up.dim() == 2:
        up = up[:, :, None, None]
    return halved(down, up, scale)


def lokr(own: Mapping[str, torch.Tensor], alpha: float | None) -> Change:
    """A Kronecker product; each side may be a product itself."""
    left, rank = side(own, "lokr_w1")
    right, other = side(own, "lokr_w2", "lokr_t2")
    rank = other or rank
    scale = alpha / rank if alpha is not None and rank else 1.0
    if left.dim() == 2 and right.dim() == 2:
        return Change(right * scale, left, True)
    left = left[:, :, None, None] if left.dim() == 2 else left
    return whole(torch.kron(left, right) * scale)


def side(own: Mapping[str, torch.Tensor], name: str, tucker: str = "") -> tuple[torch.Tensor, int]:
    """One side of LoKr, and its rank; 0 if it is whole."""
    if name in own:
        return own[name], 0
    first, second = own.get(f"{name}_a"), own.get(f"{name}_b")
    if first is None or second is None:
        raise ValueError(f"half a LoKr layer: {name} is missing")
    if tucker in own:
        return torch.einsum("ijkl,jr,ip->prkl", own[tucker], second, first), second.shape[0]
    made = first @ second.flatten(1)
    return made.view(made.shape[0], *second.shape[1:]), second.shape[0]


def loha(own: Mapping[str, torch.Tensor], alpha: float | None) -> Change:
    """The product, value by value, of two products."""
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    if any(name not in own for name in names):
        raise ValueError("half a LoHa layer")
    up1, down1, up2, down2 = (own[name] for name in names)
    rank = down1.shape[0]
    scale = 1.0 if alpha is None else alpha / rank
    if "hada_t1" in own:
        first = torch.einsum("ijkl,jr,ip->prkl", own["hada_t1"], down1, up1)
        second = torch.einsum("ijkl,jr,ip->prkl", own["hada_t2"], down2, up2)
        return whole(first * second * scale)
    inputs = down1.shape[1:].numel()
    if down1.dim() > 2 or rank * down2.shape[0] >= min(up1.shape[0], inputs):
        made = (up1 @ down1.flatten(1)) * (up2 @ down2.flatten(1)) * scale
        return whole(made.view(up1.shape[0], *down1.shape[1:]))
    up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
    down = (down1[:, None, :] * down2[None, :, :]).flatten(0, 1)
    return halved(down, up, scale)
