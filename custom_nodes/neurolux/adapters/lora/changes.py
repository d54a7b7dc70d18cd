"""What a layer of a LoRA file does to a weight: factors, a Kronecker product, a product value by value, a whole matrix,
rotations or factors of its outputs or its inputs, or another mixture of its inputs beside factors.

Nothing here makes a matrix of the weight's size, unless it stands in the file: a file of thousands of layers is planned
on the meta device, and each layer is read when it is put in. Everything is exact but for rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite

import torch

from .rotations import Rotation, TurnedInputs, boft_of_peft, oft_of_peft, rotation
from .settings import LayerSettings, SettingsMissing

SINGLE_VALUES, VECTORS = ("alpha", "on_input"), ("bias", "diff", "dora", "rescale", "w_norm", "b_norm", "weight")
"""Tensors with one value, which say what the others mean; and those that may have one dimension."""
WHOLE_WEIGHTS = "a model's own weights, not those of a LoRA"


@dataclass(frozen=True)
class Factors:
    """Adds ``up @ down``: matrices, or (rank, inputs, h, w) and (outputs, rank, 1, 1)."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def chosen(self, rows: torch.Tensor) -> Factors:
        return Factors(self.down, self.up[rows])


@dataclass(frozen=True)
class Kronecker:
    """Adds ``kron(outer, inner)``: matrices, or the inner one a kernel (outputs, inputs, h, w)."""

    outer: torch.Tensor
    inner: torch.Tensor
    order: torch.Tensor | None = None
    """Which rows of the product the layer has, in their order; None for all."""

    @property
    def shape(self) -> tuple[int, int]:
        rows = self.outer.shape[0] * self.inner.shape[0] if self.order is None else len(self.order)
        return rows, self.outer.shape[1] * self.inner.shape[1]

    def chosen(self, rows: torch.Tensor) -> Kronecker:
        return replace(self, order=rows if self.order is None else self.order[rows])


@dataclass(frozen=True)
class Hadamard:
    """Adds the product, value by value, of two products, each of (outputs, rank) and (rank, inputs, ...)."""

    ups: tuple[torch.Tensor, torch.Tensor]
    downs: tuple[torch.Tensor, torch.Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        return self.ups[0].shape[0], self.downs[0].shape[1]

    def chosen(self, rows: torch.Tensor) -> Hadamard:
        return Hadamard((self.ups[0][rows], self.ups[1][rows]), self.downs)


@dataclass(frozen=True)
class Difference:
    """Adds a weight as it stands in the file."""

    weight: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    def chosen(self, rows: torch.Tensor) -> Difference:
        return Difference(self.weight[rows])


@dataclass(frozen=True)
class Gain:
    """Adds each input's, or each output's, own share of the weight."""

    shares: torch.Tensor
    of_inputs: bool
    of_bias: bool = False
    """Whether it is the outputs with their bias that are multiplied."""

    @property
    def shape(self) -> tuple[int | None, int | None]:
        return (None, len(self.shares)) if self.of_inputs else (len(self.shares), None)

    def chosen(self, rows: torch.Tensor) -> Gain:
        return self if self.of_inputs else Gain(self.shares[rows], False, self.of_bias)


@dataclass(frozen=True)
class Mixed:
    """Adds factors, and the weight's own part of a mixture of its inputs (GLoRA)."""

    beside: Factors
    down: torch.Tensor
    """(rank, inputs)."""
    up: torch.Tensor
    """(inputs, rank)."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.beside.shape

    def chosen(self, rows: torch.Tensor) -> Mixed:
        return replace(self, beside=self.beside.chosen(rows))


@dataclass(frozen=True)
class NormWeight:
    """Adds to the weight of a norm."""

    weight: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.weight), len(self.weight)

    def chosen(self, rows: torch.Tensor) -> NormWeight:
        return NormWeight(self.weight[rows])


Kind = Factors | Kronecker | Hadamard | Difference | Rotation | TurnedInputs | Gain | Mixed | NormWeight


@dataclass(frozen=True)
class Change:
    """What is done to a layer."""

    kind: Kind
    bias: torch.Tensor | None = None
    """What is added to the bias."""
    magnitude: torch.Tensor | None = None
    """The length of each row of the changed weight, or of each column (DoRA)."""
    of_inputs: bool = False
    """Whether the magnitudes are those of the inputs."""

    @property
    def shape(self) -> tuple[int | None, int | None]:
        """Outputs and inputs of the layer; None for what any layer fits."""
        return self.kind.shape

    def chosen(self, rows: torch.Tensor) -> Change:
        """The part of some rows of the weight, in their order. Raises ValueError where a part means nothing."""
        if self.magnitude is not None and self.of_inputs:
            raise ValueError("DoRA along the inputs of joined layers")
        return Change(
            self.kind.chosen(rows),
            None if self.bias is None else self.bias[rows],
            None if self.magnitude is None else self.magnitude[rows],
        )


def shaped(change: Change, kernel: tuple[int, ...]) -> Change:
    """The change of a convolution with this kernel, or of a linear layer (an empty kernel).

    Some files have all inputs of a convolution in one dimension, and 1x1 convolutions as matrices or the reverse.
    Raises ValueError for another kernel.
    """
    kind = change.kind
    if isinstance(kind, Factors):
        down, up = cut(kind.down, kernel), cut(kind.up, (1, 1) if kernel else ())
        return replace(change, kind=Factors(down, up))
    if isinstance(kind, Mixed):
        beside = Factors(cut(kind.beside.down, kernel), cut(kind.beside.up, (1, 1) if kernel else ()))
        return replace(change, kind=replace(kind, beside=beside))
    if isinstance(kind, TurnedInputs) and kernel not in ((), (1, 1)):
        raise ValueError(f"a rotation of the inputs of a layer with the kernel {kernel} (OFT or BOFT of peft)")
    if isinstance(kind, Hadamard):
        kind = Hadamard(kind.ups, (cut(kind.downs[0], kernel), cut(kind.downs[1], kernel)))
        weight = kind.downs[0]
    elif isinstance(kind, Difference):
        kind = Difference(weight := cut(kind.weight, kernel))
    elif isinstance(kind, Kronecker):
        kind = replace(kind, inner=(weight := cut(kind.inner, kernel)))
    else:
        return change
    if tuple(weight.shape[2:]) != kernel:
        raise ValueError(f"a kernel of {tuple(weight.shape[2:])} for a layer with {kernel}")
    return replace(change, kind=kind)


def cut(weight: torch.Tensor, kernel: tuple[int, ...]) -> torch.Tensor:
    """A weight (outputs, inputs, ...) with this kernel, if it has as many values."""
    if not kernel:
        made = weight.flatten(1) if weight.shape[2:].numel() == 1 else weight
    elif weight.dim() > 2 or weight.shape[1] % (kernel[0] * kernel[1]):
        made = weight
    else:
        made = weight.reshape(weight.shape[0], -1, *kernel)
    if made.dim() != (4 if kernel else 2) or made.shape[2:] not in (kernel, (1, 1)):
        raise ValueError(f"a weight of the shape {tuple(weight.shape)} for a layer with the kernel {kernel or 'none'}")
    return made


def change_of(tensors: Mapping[str, torch.Tensor], stated: LayerSettings | None = None) -> Change:
    """What the tensors of a layer do. ``stated``: what the file's settings say of it.

    Raises ValueError, which names what is missing or unknown.
    """
    for name, value in tensors.items():
        if value.numel() > 1 and not value.is_floating_point():
            raise ValueError(f"tensors of type {str(value.dtype).removeprefix('torch.')} ({name})")
        least, single = (0, True) if name in SINGLE_VALUES else (1, False) if name in VECTORS else (2, False)
        if value.dim() < least or value.numel() == 0 or (single and value.numel() > 1):
            raise ValueError(f"{name} of the shape {tuple(value.shape)}")
    own = {kind: value.to(torch.float32) for kind, value in tensors.items() if kind not in SINGLE_VALUES}
    alpha = float(tensors["alpha"]) if "alpha" in tensors else None
    if alpha is not None and not isfinite(alpha):
        raise ValueError(f"alpha is {alpha}")
    kind = kind_of(own, tensors, alpha, stated)
    if stated is not None and alpha is None:
        kind = scaled(kind, stated.scale)
    bias = own.get("bias", own.get("b_norm"))
    if bias is not None and bias.flatten().shape[0] != kind.shape[0]:
        raise ValueError("a bias of another size")
    change = Change(kind, None if bias is None else bias.flatten())
    return change if "dora" not in own else with_magnitude(change, own["dora"])


def scaled(kind: Kind, scale: float) -> Kind:
    """``kind`` times a scale, where it adds a product."""
    if isinstance(kind, Factors):
        return halved(kind.down, kind.up, scale)
    if isinstance(kind, Hadamard):
        return replace(kind, ups=(kind.ups[0] * scale, kind.ups[1]))
    return replace(kind, inner=kind.inner * scale) if isinstance(kind, Kronecker) else kind


def kind_of(
    own: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    alpha: float | None,
    stated: LayerSettings | None,
) -> Kind:
    """The method by which the tensors change the weight. Raises ValueError."""
    if "down" in own or "up" in own:
        return plain(own, alpha)
    if any(kind.startswith("lokr_") for kind in own):
        return lokr(own, alpha)
    if any(kind.startswith("hada_") for kind in own):
        return loha(own, alpha)
    if "oft_blocks" in own:
        return rotation(own, alpha or 0.0)
    if "oft_R" in own:
        return oft_of_peft(own, None if stated is None else stated.stated)
    if "boft_R" in own:
        return boft_of_peft(own)
    if "ia3_l" in own:
        return ia3_of_peft(own["ia3_l"], stated)
    if "a1" in own or "b1" in own:
        return glora(own, alpha)
    if "w_norm" in own or "b_norm" in own:
        weight = own["w_norm"] if "w_norm" in own else torch.zeros_like(own["b_norm"])
        return NormWeight(weight.flatten())
    if "diff" in own:
        return Difference(own["diff"]) if own["diff"].dim() > 1 else NormWeight(own["diff"])
    if "weight" in own and "on_input" in tensors:
        return Gain(own["weight"].flatten(), bool(tensors["on_input"].any()))
    if "weight" in own:
        raise ValueError(WHOLE_WEIGHTS)
    if "bias" in own:
        return Gain(torch.zeros_like(own["bias"].flatten()), False)
    raise ValueError(f"tensors called {', '.join(own) or ', '.join(tensors)}")


def with_magnitude(change: Change, dora: torch.Tensor) -> Change:
    """``change`` as a DoRA. Raises ValueError for a method that has none."""
    if isinstance(change.kind, Rotation | TurnedInputs | Gain | Mixed | NormWeight):
        raise ValueError("DoRA on something that adds nothing to the weight")
    return replace(change, magnitude=dora.flatten(), of_inputs=dora.dim() > 1 and dora.shape[0] == 1)


def check_magnitude(change: Change) -> None:
    """Raise ValueError unless there is a magnitude for each output, or for each input."""
    if change.magnitude is None:
        return
    outputs, inputs = change.shape
    if len(change.magnitude) != (inputs if change.of_inputs else outputs):
        raise ValueError(f"DoRA with {len(change.magnitude)} magnitudes for a weight of {outputs}x{inputs}")


def halved(down: torch.Tensor, up: torch.Tensor, scale: float) -> Factors:
    """Both factors with the scale shared between them, as diffusers does, so that neither is very small."""
    first, second = scale, 1.0
    while 0 < first * 2 < second:
        first, second = first * 2, second / 2
    return Factors(down * first, up * second)


def plain(own: Mapping[str, torch.Tensor], alpha: float | None) -> Factors:
    """LoRA and LoCon."""
    if "down" not in own or "up" not in own:
        raise ValueError("half a LoRA layer: lora_A or lora_B is missing")
    down, up = own["down"], own["up"]
    if down.shape[0] != up.shape[1] and "mid" not in own:
        raise ValueError(f"factors of the ranks {down.shape[0]} and {up.shape[1]}")
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    if "mid" in own:
        down = torch.einsum("oikl,ic->ockl", own["mid"], down.flatten(1))
    if down.dim() == 4 and up.dim() == 2:
        up = up[:, :, None, None]
    return halved(down, up, scale)


def lokr(own: Mapping[str, torch.Tensor], alpha: float | None) -> Kronecker:
    """A Kronecker product; each side may be a product itself."""
    left, rank = side(own, "lokr_w1")
    right, other = side(own, "lokr_w2", "lokr_t2")
    rank = other or rank
    scale = alpha / rank if alpha is not None and rank else 1.0
    return Kronecker(left.flatten(1), right * scale)


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


def loha(own: Mapping[str, torch.Tensor], alpha: float | None) -> Hadamard:
    """The product, value by value, of two products."""
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    if any(name not in own for name in names):
        raise ValueError("half a LoHa layer")
    up1, down1, up2, down2 = (own[name] for name in names)
    scale = 1.0 if alpha is None else alpha / down1.shape[0]
    if "hada_t1" in own or "hada_t2" in own:
        if "hada_t1" not in own or "hada_t2" not in own:
            raise ValueError("half a LoHa layer")
        up1, up2 = up1.T, up2.T
        down1 = torch.einsum("ijkl,jr->irkl", own["hada_t1"], down1)
        down2 = torch.einsum("ijkl,jr->irkl", own["hada_t2"], down2)
    if any(up.shape[1] != down.shape[0] for up, down in ((up1, down1), (up2, down2))):
        raise ValueError("LoHa whose factors have different ranks")
    if up1.shape[0] != up2.shape[0] or down1.shape[1:] != down2.shape[1:]:
        raise ValueError("LoHa whose products have different sizes")
    return Hadamard((up1 * scale, up2), (down1, down2))


def ia3_of_peft(shares: torch.Tensor, stated: LayerSettings | None) -> Gain:
    """(IA)³ of peft: what the inputs of a feed-forward layer, or the outputs of another, are multiplied with.

    The shape says it for a linear layer: (1, inputs) or (outputs, 1).
    """
    if shares.dim() == 2 and shares.shape[1] == 1:
        return Gain(shares.flatten() - 1, False, of_bias=True)
    if shares.dim() == 2 and shares.shape[0] == 1:
        return Gain(shares.flatten() - 1, True)
    if stated is None:
        raise SettingsMissing("(IA)³ of peft on convolutions")
    of_inputs = stated.names_feedforward
    return Gain(shares.flatten() - 1, of_inputs, of_bias=not of_inputs)


def glora(own: Mapping[str, torch.Tensor], alpha: float | None) -> Mixed:
    """GLoRA of LyCORIS. Its factors of the inputs, and those beside, changed places in a later version."""
    if any(name not in own for name in ("a1", "a2", "b1", "b2")):
        raise ValueError("half a GLoRA layer")
    first, second, third, fourth = (own[name] for name in ("a1", "a2", "b1", "b2"))
    older = first.shape[0] == second.shape[1] == third.shape[0] == fourth.shape[1]
    newer = first.shape[1] == second.shape[0] == third.shape[1] == fourth.shape[0]
    if not older and not newer:
        raise ValueError("GLoRA whose factors have different ranks")
    if older and newer:  # of a layer with as many outputs as inputs, whose rank is the smaller of the sizes
        older = first.shape[0] < first.shape[1]
        if first.shape[0] == first.shape[1]:
            raise ValueError("GLoRA of a layer's own rank")
    up, down = (second, first) if older else (first, second)
    beside = (third, fourth) if older else (fourth, third)
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    return Mixed(halved(*beside, scale), down.flatten(1), up.flatten(1) * scale)
