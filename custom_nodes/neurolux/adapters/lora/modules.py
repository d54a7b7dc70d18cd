"""Modules that do to a layer what a LoRA file says, in the places that peft switches and scales.

peft adds ``lora_B(lora_A(x)) * scaling`` to a layer's output. What multiplies the weight instead, or depends on its
lengths (DoRA), is one of peft's variants, which get the output itself. None of them changes or keeps the base weight,
so they work on weights that are quantized, or streamed block by block.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch.nn import functional

from .changes import Change, Difference, Factors, Gain, Hadamard, Kronecker, Mixed, NormWeight
from .rotations import Rotation, TurnedInputs, butterfly


def constant(value: torch.Tensor) -> torch.nn.Parameter:
    """A parameter, so that it moves with its layer."""
    return torch.nn.Parameter(value.clone(), requires_grad=False)


class Added(torch.nn.Module):
    """The second place, for what the first one has done already. ``bias`` is what a file adds to the layer's own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = constant(torch.ones(1, dtype=dtype))
        self.bias: torch.nn.Parameter | None = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The same, and the bias."""
        if self.bias is None:
            return values
        return values + (self.bias if values.dim() != 4 else self.bias[:, None, None])


class InnerKronecker(torch.nn.Module):
    """The inner side of a Kronecker product of matrices."""

    def __init__(self, weight: torch.Tensor, blocks: int) -> None:
        super().__init__()
        self.weight = constant(weight)
        self.blocks = blocks

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., blocks, outputs of the inner side)."""
        return values.unflatten(-1, (self.blocks, -1)) @ self.weight.T


class OuterKronecker(torch.nn.Module):
    """The outer side, and the rows of the product that the layer has."""

    order: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, order: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = constant(weight)
        self.register_buffer("order", order, persistent=False)
        self.bias: torch.nn.Parameter | None = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(..., blocks, outputs of the inner side) -> (..., outputs)."""
        made = (self.weight @ values).flatten(-2)
        made = made if self.order is None else made[..., self.order]
        return made if self.bias is None else made + self.bias


class Composed(torch.nn.Module):
    """A weight that is made of small tensors for each call, and never kept: LoHa, LoKr's kernels; or whole."""

    order: torch.Tensor | None
    up1: torch.nn.Parameter
    up2: torch.nn.Parameter
    down1: torch.nn.Parameter
    down2: torch.nn.Parameter
    outer: torch.nn.Parameter
    inner: torch.nn.Parameter
    matrix: torch.nn.Parameter

    def __init__(self, kind: Hadamard | Kronecker | Difference, base: torch.nn.Module) -> None:
        super().__init__()
        order = None
        if isinstance(kind, Hadamard):
            named = {"up1": kind.ups[0], "up2": kind.ups[1], "down1": kind.downs[0], "down2": kind.downs[1]}
        elif isinstance(kind, Kronecker):
            named = {"outer": kind.outer, "inner": kind.inner}
            order = kind.order
        else:
            named = {"matrix": kind.weight}
        self.kind = type(kind)
        for name, value in named.items():
            setattr(self, name, constant(value))
        self.register_buffer("order", order, persistent=False)
        self._convolution = [base] if isinstance(base, torch.nn.Conv2d) else []  # not as a submodule

    @property
    def weight(self) -> torch.Tensor:
        """The first of its tensors: peft asks for the type."""
        return next(self.parameters())

    def whole(self) -> torch.Tensor:
        """The weight that it adds."""
        if self.kind is Difference:
            return self.matrix
        if self.kind is Hadamard:
            first = torch.tensordot(self.up1, self.down1, 1)
            return first * torch.tensordot(self.up2, self.down2, 1)
        outer = self.outer.view(*self.outer.shape, *[1] * (self.inner.dim() - 2))
        made = torch.kron(outer, self.inner)
        return made if self.order is None else made[self.order]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """What the weight makes of the layer's input."""
        if not self._convolution:
            return functional.linear(values, self.whole())
        base = self._convolution[0]
        return functional.conv2d(values, self.whole(), None, base.stride, base.padding, base.dilation, base.groups)


class Rotated(torch.nn.Module):
    """What a rotation adds to a layer's output without its bias."""

    def __init__(self, kind: Rotation, dtype: torch.dtype) -> None:
        super().__init__()
        unit = torch.eye(kind.skew.shape[-1])
        turn = torch.linalg.solve(unit - kind.skew, unit + kind.skew)
        self.of_inputs = False
        self.staged = turn.dim() == 4
        # OFT multiplies with the transposed blocks, BOFT with the blocks
        self.weight = constant((turn if self.staged else turn.transpose(-1, -2)).to(dtype))
        self.rescale = None if kind.rescale is None else constant(kind.rescale.to(dtype))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(..., outputs) -> the difference, (..., outputs)."""
        side, made = self.weight.shape[-1], values
        if not self.staged:
            made = torch.einsum("kmn,...kn->...km", self.weight, made.unflatten(-1, (-1, side))).flatten(-2)
        for number, blocks in enumerate(self.weight if self.staged else ()):
            apart = 2**number * (side // 2)
            made = made.unflatten(-1, (-1, 2, apart)).transpose(-1, -2).flatten(-3)
            made = torch.einsum("kmn,...kn->...km", blocks, made.unflatten(-1, (-1, side))).flatten(-2)
            made = made.unflatten(-1, (-1, apart, 2)).transpose(-1, -2).flatten(-3)
        return (made if self.rescale is None else made * self.rescale) - values


class Shares(torch.nn.Module):
    """Factors of a layer's outputs, or of its inputs."""

    def __init__(self, kind: Gain, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = constant(kind.shares.to(dtype))
        self.of_inputs = kind.of_inputs
        self.of_bias = kind.of_bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(..., outputs or inputs) -> each times its share."""
        return values * self.weight


class Turning(torch.nn.Module):
    """What a rotation adds to a layer's inputs, and the factors of the outputs of what is rotated."""

    of_inputs = True
    gains: torch.nn.Parameter | None
    orders: torch.Tensor
    back: torch.Tensor

    def __init__(self, kind: TurnedInputs, inputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = constant(kind.turns.to(dtype))
        self.gains = None if kind.gains is None else constant(kind.gains.to(dtype))
        orders = [butterfly(stage, kind.turns.shape[-1], inputs) for stage in range(len(kind.turns))]
        self.register_buffer("orders", torch.stack(orders), persistent=False)
        self.register_buffer("back", torch.stack([order.argsort() for order in orders]), persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> the difference, (..., inputs). The last stage comes first."""
        made, side = values, self.weight.shape[-1]
        for stage in reversed(range(len(self.weight))):
            made = made[..., self.back[stage]] if stage else made  # the first order is that of the layer
            made = (made.unflatten(-1, (-1, 1, side)) @ self.weight[stage]).flatten(-3)
            made = made[..., self.orders[stage]] if stage else made
        return made - values


class MixedInputs(torch.nn.Module):
    """Another mixture of a layer's inputs, and the factors beside."""

    of_inputs = True

    def __init__(self, kind: Mixed, base: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.up = constant(kind.down.to(dtype)), constant(kind.up.to(dtype))
        self.beside_down, self.beside_up = constant(kind.beside.down.to(dtype)), constant(kind.beside.up.to(dtype))
        self._convolution = [base] if isinstance(base, torch.nn.Conv2d) else []  # not as a submodule

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> the mixture, (..., inputs)."""
        return values @ self.weight.T @ self.up.T

    def beside(self, values: torch.Tensor) -> torch.Tensor:
        """What the factors make of the layer's own input."""
        if not self._convolution:
            return values @ self.beside_down.T @ self.beside_up.T
        base = self._convolution[0]
        wide = tuple(self.beside_down.shape[2:]) == base.kernel_size
        padding = base.padding if wide else (0, 0)
        made = functional.conv2d(values, self.beside_down, None, base.stride, padding, base.dilation)
        return functional.conv2d(made, self.beside_up)


def channels_last(values: torch.Tensor, layer: Any) -> torch.Tensor:
    """Values of a layer with their channels in the last dimension, or back: the same for both."""
    return values.movedim(1, -1) if isinstance(layer, torch.nn.Conv2d) else values


def channels_back(values: torch.Tensor, layer: Any) -> torch.Tensor:
    """The reverse."""
    return values.movedim(-1, 1) if isinstance(layer, torch.nn.Conv2d) else values


def base_output(module: Any, name: str, values: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """What the layer's own weight makes of ``values``, channels last and without its bias.

    ``result``: what peft has so far, which is that for the first adapter of several.
    """
    base = module.base_layer
    first = next((active for active in module.active_adapters if active in module.lora_A), name)
    made = result if first == name else base(values.to(result.dtype))
    made = channels_last(made, base)
    return made if base.bias is None else made - base.bias


class Multiplied:
    """peft's variant for what multiplies the weight."""

    def forward(
        self, module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: object
    ) -> torch.Tensor:
        """``result`` with the adapter's effect."""
        base, change, second = module.base_layer, module.lora_A[active_adapter], module.lora_B[active_adapter]
        dtype = change.weight.dtype
        if change.of_inputs:
            moved = channels_back(change(channels_last(x.to(dtype), base)), base).to(result.dtype)
            added = channels_last(base(moved), base)
            added = added if base.bias is None else added - base.bias
        else:
            added = change(base_output(module, active_adapter, x, result).to(dtype)).to(result.dtype)
        if isinstance(change, MixedInputs):
            added = added + channels_last(change.beside(x.to(dtype)).to(result.dtype), base)
        elif isinstance(change, Turning) and change.gains is not None:
            own, gains = base_output(module, active_adapter, x, result), change.gains.to(result.dtype)
            added = (own + added) * gains - own
        elif isinstance(change, Shares) and change.of_bias and base.bias is not None:
            added = added + change(base.bias.to(dtype)).to(result.dtype)
        return result + second(channels_back(added, base)) * module.scaling[active_adapter]


class Lengths:
    """peft's variant for DoRA: the changed weight's rows, or columns, have lengths of their own.

    The lengths that they have by themselves are computed once for each strength.
    """

    def __init__(self, of_inputs: bool) -> None:
        self.of_inputs = of_inputs
        self._known: tuple[float, torch.Tensor] | None = None

    def forward(
        self, module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: object
    ) -> torch.Tensor:
        """``result`` with the adapter's effect."""
        base, scaling = module.base_layer, module.scaling[active_adapter]
        first, second = module.lora_A[active_adapter], module.lora_B[active_adapter]
        factor = (second.magnitude.float() / self.lengths(module, active_adapter, scaling)).to(x.dtype)
        own = base_output(module, active_adapter, x, result)
        if self.of_inputs:
            x = channels_back(channels_last(x, base) * factor, base)
            scaled = channels_last(base(x.to(result.dtype)), base)
            scaled = scaled if base.bias is None else scaled - base.bias
            factor = torch.ones_like(factor[:1])
        else:
            scaled = own * factor
        bias, second.bias = second.bias, None
        try:
            added = channels_last(second(first(x)), base) * scaling
        finally:
            second.bias = bias
        change = scaled - own + added * factor
        if bias is not None:
            change = change + bias * scaling
        return result + channels_back(change, base)

    def lengths(self, module: Any, name: str, scaling: float) -> torch.Tensor:
        """Of the rows, or the columns, of the weight with the change in it: float32."""
        weight = module.base_layer.weight
        if self._known is None or self._known[0] != scaling or self._known[1].device != weight.device:
            whole = weight.float() + scaling * added_weight(module.lora_A[name], module.lora_B[name]).float()
            whole = (whole.transpose(0, 1) if self.of_inputs else whole).flatten(1)
            self._known = scaling, whole.norm(dim=1).clamp_min(torch.finfo(torch.float32).eps)
        return self._known[1]


def added_weight(first: Any, second: Any) -> torch.Tensor:
    """What the two modules add to the weight, as one tensor."""
    if isinstance(first, Composed):
        return first.whole()
    if isinstance(first, InnerKronecker):
        made = torch.kron(second.weight, first.weight)
        return made if second.order is None else made[second.order]
    return torch.tensordot(second.weight.flatten(1), first.weight, 1)


def norms() -> tuple[type[torch.nn.Module], ...]:
    """The classes of norms that a file can change."""
    from diffusers.models.normalization import RMSNorm

    return torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.RMSNorm, RMSNorm


def normalized(norm: Any, values: torch.Tensor) -> torch.Tensor:
    """What a norm makes of values before its weight: float32."""
    values = values.float()
    if isinstance(norm, torch.nn.LayerNorm):
        return functional.layer_norm(values, norm.normalized_shape, None, None, norm.eps)
    if isinstance(norm, torch.nn.GroupNorm):
        return functional.group_norm(values, norm.num_groups, None, None, norm.eps)
    return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + (norm.eps or torch.finfo(norm.weight.dtype).eps))


class AddedToNorm(torch.nn.Module):
    """What a file adds to a norm's weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = constant(weight)


@cache
def norm_layer() -> type[torch.nn.Module]:
    """peft's place for adapters beside a norm, which it has none for."""
    from peft.tuners.lora.layer import LoraLayer

    class NormLayer(torch.nn.Module, LoraLayer):
        """A norm, and what adapters add to it."""

        def __init__(self, base_layer: torch.nn.Module, adapter_name: str, **_: object) -> None:
            super().__init__()
            LoraLayer.__init__(self, base_layer)
            self._active_adapter = adapter_name
            self.update_layer(adapter_name)

        def update_layer(self, adapter_name: str, *_: object, **__: object) -> None:
            self.r[adapter_name] = self.lora_alpha[adapter_name] = 1
            self.scaling[adapter_name], self.use_rslora[adapter_name] = 1.0, False
            weight: Any = self.get_base_layer().weight
            self.lora_A[adapter_name] = AddedToNorm(torch.zeros_like(weight))
            self.lora_B[adapter_name] = Added(weight.dtype)
            self.set_adapter(self.active_adapters)

        def forward(self, values: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
            result = self.base_layer(values, *rest, **named)
            active = [name for name in self.active_adapters if name in self.lora_A]
            if self.disable_adapters or not active:
                return result
            base: Any = self.base_layer
            plain = normalized(base, values)
            across = [1] * (values.dim() - 2) if isinstance(base, torch.nn.GroupNorm) else []
            for name in active:
                first, second = cast(Any, self.lora_A[name]), cast(Any, self.lora_B[name])
                added = plain.to(first.weight.dtype) * first.weight.view(-1, *across)
                if second.bias is not None:
                    added = added + second.bias.view(-1, *across)
                result = result + (added * self.scaling[name]).to(result.dtype)
            return result

    return NormLayer


def put_in(wrapped: Any, name: str, change: Change, dtype: torch.dtype) -> None:
    """Give peft's ``wrapped`` layer the adapter ``name``, which does ``change``."""
    base, kind = wrapped.base_layer, change.kind
    device = wrapped.lora_A[name].weight.device
    first: Any
    second: Any = Added(dtype)
    if isinstance(kind, Factors):
        first, second = wrapped.lora_A[name], wrapped.lora_B[name]
        for layer, weight in ((first, kind.down), (second, kind.up)):
            layer.weight = constant(weight.to(dtype))
        if isinstance(base, torch.nn.Conv2d):
            set_kernel(first, kind.down, base)
    elif isinstance(kind, Kronecker) and not isinstance(base, torch.nn.Conv2d):
        first = InnerKronecker(kind.inner.to(dtype), kind.outer.shape[1])
        second = OuterKronecker(kind.outer.to(dtype), kind.order)
    elif isinstance(kind, NormWeight):
        first = AddedToNorm(kind.weight)
    elif isinstance(kind, Rotation):
        first = Rotated(kind, dtype)
    elif isinstance(kind, Gain):
        first = Shares(kind, dtype)
    elif isinstance(kind, TurnedInputs):
        first = Turning(kind, base.in_channels if isinstance(base, torch.nn.Conv2d) else base.in_features, dtype)
    elif isinstance(kind, Mixed):
        first = MixedInputs(kind, base, dtype)
    else:
        first = Composed(kind, base)
    wrapped.lora_A[name], wrapped.lora_B[name] = in_type(first, dtype).to(device), in_type(second, dtype).to(device)
    if change.bias is not None:
        second.bias = constant(change.bias.to(device, dtype))
    if change.magnitude is not None:
        second.magnitude = constant(change.magnitude.to(device, dtype))
        wrapped.lora_variant[name] = Lengths(change.of_inputs)
    elif isinstance(kind, Rotation | TurnedInputs | Gain | Mixed):
        wrapped.lora_variant[name] = Multiplied()


def in_type(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """``module`` with its weights in ``dtype``."""
    for weight in module.parameters():
        weight.data = weight.data.to(dtype)
    return module


def set_kernel(layer: Any, weight: torch.Tensor, base: torch.nn.Conv2d) -> None:
    """The first factor of a convolution has its kernel, stride and padding, unless it is a 1x1 one."""
    layer.kernel_size = tuple(weight.shape[2:])
    layer.stride, layer.dilation = base.stride, base.dilation
    layer.padding = base.padding if tuple(weight.shape[2:]) == base.kernel_size else (0, 0)
