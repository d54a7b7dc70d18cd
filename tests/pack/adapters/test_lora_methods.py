"""What each method of a LoRA file makes of a layer's weight, on weights that are plain, quantized or streamed.

The weight is written out here, from the method's definition, and compared by what the layer returns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from tests.pack.adapters.test_lora_dialects import ALPHA, RANK, State, inputs_for, loha, lokr, lora, noise
from tests.pack.applied import make_image, with_loras
from tests.pack.pipelines import borrow, handle_for

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
STRENGTH = 0.5
Made = tuple[State, Callable[[float], torch.Tensor], torch.Tensor | float]
"""A layer's tensors, its weight at a strength, and what is added to its bias at full strength."""
Method = Callable[[torch.Tensor, torch.Generator], Made]
"""(weight, random numbers) -> these."""
DOWN = lora(".lora_down.weight", ".lora_up.weight", ".alpha")


def turned(blocks: torch.Tensor) -> torch.Tensor:
    """Orthogonal blocks by Cayley's transform."""
    skew = blocks - blocks.transpose(-1, -2)
    unit = torch.eye(blocks.shape[-1])
    return (unit + skew) @ torch.linalg.inv(unit - skew)


def between(weight: torch.Tensor, changed: torch.Tensor) -> Callable[[float], torch.Tensor]:
    """The weight at a strength."""
    return lambda strength: weight + strength * (changed - weight)


def oft(rescaled: bool = False, bound: float = 0.0) -> Method:
    def make(weight: torch.Tensor, generator: torch.Generator) -> Made:
        blocks = noise(generator, len(weight) // 4, 4, 4)
        state = {".oft_blocks": blocks}
        if bound:
            state[".alpha"] = torch.tensor(bound)
            blocks = blocks * min(1.0, bound / (blocks - blocks.transpose(1, 2)).norm())
        turn = torch.block_diag(*turned(blocks).transpose(1, 2))
        changed = torch.tensordot(turn, weight, 1)
        if rescaled:
            state[".rescale"] = 1 + noise(generator, len(weight), *[1] * (weight.dim() - 1))
            changed = changed * state[".rescale"]
        return state, between(weight, changed), 0.0

    return make


def boft(weight: torch.Tensor, generator: torch.Generator) -> Made:
    """Two stages of blocks of 4: the second mixes outputs that are two apart."""
    blocks = noise(generator, 2, len(weight) // 4, 4, 4)
    changed = weight
    for number, stage in enumerate(turned(blocks)):
        apart = 2**number * 2
        places = torch.arange(len(weight)).view(-1, 2, apart).transpose(1, 2).flatten()
        mixed = torch.empty_like(changed)
        mixed[places] = torch.tensordot(torch.block_diag(*stage), changed[places], 1)
        changed = mixed
    return {".oft_blocks": blocks}, between(weight, changed), 0.0


def ia3(of_inputs: bool) -> Method:
    def make(weight: torch.Tensor, generator: torch.Generator) -> Made:
        shares = noise(generator, weight.shape[1 if of_inputs else 0])
        factor = 1 + (shares.view(1, -1, *[1] * (weight.dim() - 2)) if of_inputs else shares.view(
            -1, *[1] * (weight.dim() - 1)))  # fmt: skip
        state = {".weight": shares, ".on_input": torch.tensor(of_inputs)}
        return state, between(weight, weight * factor), 0.0

    return make


def boft_of_peft(weight: torch.Tensor, generator: torch.Generator) -> Made:
    """Two stages on the inputs, as the published matrices: blocks of 8 on halves that change places by fours."""
    inputs, side = weight.shape[1], 8
    blocks, gains = noise(generator, 2, inputs // side, side, side), 1 + noise(generator, len(weight), 1)
    if weight.dim() > 2 and weight.shape[2:].numel() > 1:
        return diff(weight, generator)
    skew, unit, turn = (blocks - blocks.transpose(-1, -2)) / 2, torch.eye(side), torch.eye(inputs)
    for number in (0, 1):
        stage = torch.block_diag(*((unit - skew[number]) @ torch.linalg.inv(unit + skew[number])))
        if number:
            places = torch.cat([torch.arange(16).view(2, 2, 4).transpose(0, 1).flatten() + start
                                for start in range(0, inputs, 16)])  # fmt: skip
            swap = torch.zeros(inputs, inputs)
            swap[torch.arange(inputs), places] = 1
            stage = swap @ stage @ swap.T
        turn = stage @ turn
    changed = torch.einsum("oi...,ji->oj...", weight, turn) * gains.view(-1, *[1] * (weight.dim() - 1))
    return {".boft_R": blocks, ".boft_s": gains}, between(weight, changed), 0.0


def glora(older: bool) -> Method:
    def make(weight: torch.Tensor, generator: torch.Generator) -> Made:
        outputs, inputs, *kernel = weight.shape
        ones = [1] * len(kernel)
        wide, tall = noise(generator, RANK, inputs), noise(generator, inputs, RANK)
        first, second = noise(generator, RANK, inputs, *kernel), noise(generator, outputs, RANK, *ones)
        added = torch.tensordot(second.view(outputs, RANK), first, 1)
        added = added + torch.einsum("oi...,ir,rj->oj...", weight, tall, wide)
        parts = {".a1": wide, ".a2": tall, ".b1": first, ".b2": second}
        if not older:
            parts = {".a1": tall, ".a2": wide, ".b1": second, ".b2": first}
        state = {f"{kind}.weight": value.view(*value.shape, *ones) if value.dim() == 2 else value
                 for kind, value in parts.items()}  # fmt: skip
        return state | {".alpha": torch.tensor(ALPHA)}, between(weight, weight + added * ALPHA / RANK), 0.0

    return make


def diff(weight: torch.Tensor, generator: torch.Generator) -> Made:
    added, bias = noise(generator, *weight.shape), noise(generator, len(weight))
    return {".diff": added, ".diff_b": bias}, between(weight, weight + added), bias


def with_bias(key: str) -> Method:
    def make(weight: torch.Tensor, generator: torch.Generator) -> Made:
        names = (".lora_A.weight", ".lora_B.weight") if "lora_B" in key else (".lora_down.weight", ".lora_up.weight")
        state, added = lora(*names)(tuple(weight.shape), generator)
        bias = noise(generator, len(weight))
        return state | {key: bias}, between(weight, weight + added), bias

    return make


def only_bias(weight: torch.Tensor, generator: torch.Generator) -> Made:
    bias = noise(generator, len(weight))
    return {".diff_b": bias}, lambda strength: weight, bias


def dora(make: Callable[[tuple[int, ...], torch.Generator], tuple[State, torch.Tensor]], of_inputs: bool) -> Method:
    def made(weight: torch.Tensor, generator: torch.Generator) -> Made:
        state, added = make(tuple(weight.shape), generator)
        along = [axis for axis in range(weight.dim()) if axis != (1 if of_inputs else 0)]

        def lengths_of(weight: torch.Tensor) -> torch.Tensor:
            return weight.square().sum(along, keepdim=True).sqrt()

        lengths = lengths_of(weight) * 1.3

        def at(strength: float) -> torch.Tensor:
            changed = weight + strength * added
            return changed * lengths / lengths_of(changed)

        return state | {".dora_scale": lengths}, at, 0.0

    return made


def loha_tucker(shape: tuple[int, ...], generator: torch.Generator) -> tuple[State, torch.Tensor]:
    if len(shape) == 2:
        return loha(shape, generator)
    state, sides = {".alpha": torch.tensor(ALPHA)}, []
    for number in "12":
        core, up = noise(generator, RANK, RANK, *shape[2:]), noise(generator, RANK, shape[0])
        down = noise(generator, RANK, shape[1])
        state |= {f".hada_t{number}": core, f".hada_w{number}_a": up, f".hada_w{number}_b": down}
        sides.append(torch.einsum("ijkl,jr,ip->prkl", core, down, up))
    return state, sides[0] * sides[1] * ALPHA / RANK


def plain(make: Callable[[tuple[int, ...], torch.Generator], tuple[State, torch.Tensor]]) -> Method:
    def made(weight: torch.Tensor, generator: torch.Generator) -> Made:
        state, added = make(tuple(weight.shape), generator)
        return state, between(weight, weight + added), 0.0

    return made


METHODS: dict[str, Method] = {
    "OFT": oft(),
    "OFT, rescaled": oft(rescaled=True),
    "OFT, bounded": oft(bound=0.7),
    "BOFT": boft,
    "IA3 of outputs": ia3(of_inputs=False),
    "IA3 of inputs": ia3(of_inputs=True),
    "BOFT of peft in two stages": boft_of_peft,
    "GLoRA": glora(older=False),
    "GLoRA of an older LyCORIS": glora(older=True),
    "differences": diff,
    "LoRA with a bias": with_bias(".diff_b"),
    "LoRA with peft's bias": with_bias(".lora_B.bias"),
    "only a bias": only_bias,
    "LoHa": plain(loha),
    "LoHa with cores": plain(loha_tucker),
    "LoKr": plain(lokr("half")),
    "DoRA": dora(DOWN, of_inputs=False),
    "DoRA along inputs": dora(DOWN, of_inputs=True),
    "DoRA of LoHa": dora(loha, of_inputs=False),
    "DoRA of LoKr": dora(lokr("whole"), of_inputs=False),
    "DoRA of LoKr along inputs": dora(lokr("both"), of_inputs=True),
}
FLUX = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2", "single_transformer_blocks.0.proj_out")
SDXL = (
    "down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv",
    "up_blocks.1.resnets.0.conv_shortcut", "mid_block.attentions.0.proj_in",
)  # fmt: skip


def written(path: Path, layers: dict[str, torch.Tensor], method: Method) -> dict[str, Made]:
    """A file with the method on these layers."""
    generator, state, made = torch.Generator().manual_seed(8), {}, {}
    for layer, weight in layers.items():
        made[layer] = method(weight, generator)
        state |= {f"lycoris_{layer.replace('.', '_')}{kind}": value for kind, value in made[layer][0].items()}
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return made


def weights_of(denoiser: Any, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
    return {layer: denoiser.get_submodule(layer).weight.detach().float() for layer in layers}


def expected_output(base: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | float) -> torch.Tensor:
    own = torch.zeros(len(weight)) if base.bias is None else base.bias.float()
    if isinstance(base, torch.nn.Conv2d):
        return functional.conv2d(values, weight, own + bias, base.stride, base.padding)
    return functional.linear(values, weight, own + bias)


@pytest.mark.parametrize("model", ["tiny-flux-dev", "tiny-sdxl"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_makes_the_weight_that_it_defines(
    tiny_models: dict[str, Path], tmp_path: Path, name: str, model: str
) -> None:
    base = handle_for(tiny_models[model])
    loaded = borrow(base)
    path = tmp_path / "one.safetensors"
    made = written(path, weights_of(loaded.denoiser, FLUX if "flux" in model else SDXL), METHODS[name])
    with torch.no_grad():
        borrow(with_loras(base, (path, STRENGTH, STRENGTH)))
        (found,) = loaded.loras.loaded.values()
        assert found.note is None
        for target, (_, weight, bias) in made.items():
            layer: Any = loaded.denoiser.get_submodule(target)
            values = inputs_for(layer.base_layer)
            expected = expected_output(layer.base_layer, values, weight(STRENGTH), STRENGTH * bias)
            assert torch.allclose(layer(values), expected, atol=1e-4, rtol=1e-4), target
            assert not torch.allclose(expected, layer.base_layer(values), atol=1e-3), target


@pytest.mark.parametrize("name", ["OFT", "IA3 of outputs", "differences", "DoRA", "DoRA of LoKr along inputs"])
def test_several_add_up_in_any_order(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Each of them changes the model's own weight, not what another one has made of it."""
    base = handle_for(tiny_models["tiny-flux-dev"])
    loaded = borrow(base)
    layers = weights_of(loaded.denoiser, FLUX[:1])
    files = {"a": tmp_path / "a.safetensors", "z": tmp_path / "z.safetensors"}
    for other in ("a", "z"):
        method = written(files[other], layers, METHODS[name])
        lora_first = written(files["z" if other == "a" else "a"], layers, METHODS["LoHa"])
        with torch.no_grad():
            borrow(with_loras(base, *((path, STRENGTH, STRENGTH) for path in files.values())))
            for target, (_, weight, bias) in method.items():
                layer: Any = loaded.denoiser.get_submodule(target)
                values = inputs_for(layer.base_layer)
                total = weight(STRENGTH) + lora_first[target][1](STRENGTH) - layers[target]
                expected = expected_output(layer.base_layer, values, total, STRENGTH * bias)
                assert torch.allclose(layer(values), expected, atol=1e-4, rtol=1e-4), (target, other)


@pytest.mark.parametrize("choices", [{"precision": "int8"}, {"precision": "fp8"}, {"precision": "nf4"}])
def test_methods_on_quantized_weights(tiny_models: dict[str, Path], tmp_path: Path, choices: dict[str, str]) -> None:
    """The weight that is changed is the one that the layer computes with."""
    base = handle_for(tiny_models["tiny-flux-dev"], **choices)
    loaded = borrow(base)
    for number, name in enumerate(
        ("OFT", "GLoRA", "IA3 of inputs", "DoRA", "DoRA of LoKr along inputs", "LoHa", "differences")
    ):
        path = tmp_path / f"{number}.safetensors"
        made = written(path, weights_of(loaded.denoiser, FLUX), METHODS[name])
        with torch.no_grad():
            borrow(with_loras(base, (path, STRENGTH, STRENGTH)))
            for target, (_, weight, bias) in made.items():
                layer: Any = loaded.denoiser.get_submodule(target)
                values = inputs_for(layer.base_layer).to(loaded.precision.main)
                expected = expected_output(layer.base_layer, values.float(), weight(STRENGTH), STRENGTH * bias)
                error = (layer(values).float() - expected).norm() / expected.norm()
                assert error < 0.03, (name, target, error)  # of bf16


@pytest.mark.parametrize("offload", ["stream", "sequential", "disk"])
def test_methods_on_streamed_weights(tiny_models: dict[str, Path], tmp_path: Path, offload: str) -> None:
    whole = handle_for(tiny_models["tiny-flux-dev"], offload="none")
    streamed = handle_for(tiny_models["tiny-flux-dev"], offload=offload)
    before = make_image(whole)
    layers = weights_of(borrow(whole).denoiser, FLUX)
    for number, name in enumerate(
        (
            "BOFT",
            "BOFT of peft in two stages",
            "GLoRA",
            "IA3 of inputs",
            "DoRA along inputs",
            "LoKr",
            "LoHa",
            "differences",
        )
    ):
        path = tmp_path / f"{number}.safetensors"
        written(path, layers, METHODS[name])
        one = (path, STRENGTH, STRENGTH)
        made = make_image(with_loras(streamed, one))
        assert torch.equal(made, make_image(with_loras(whole, one))), name
        assert not torch.equal(made, before), name
    assert torch.equal(make_image(streamed), before)
