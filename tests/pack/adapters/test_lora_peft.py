"""Files of peft and diffusers with the settings that no tensor holds: what peft computes with them is the reference."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pack.adapters.test_lora_dialects import QKV, SINGLE, inputs_for
from tests.pack.applied import make_image, with_loras
from tests.pack.pipelines import borrow, handle_for

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
LAYERS = {
    "tiny-flux-dev": (QKV[0], "transformer_blocks.0.ff.net.2", f"{SINGLE}.proj_out"),
    "tiny-sdxl": ("up_blocks.1.resnets.0.conv_shortcut", "mid_block.attentions.0.proj_in"),
}
FLUX, SDXL = LAYERS
Config = Callable[[list[str]], Any]


def config(kind: str, **settings: Any) -> Config:
    def make(layers: list[str]) -> Any:
        import peft

        return getattr(peft, kind)(target_modules=layers, **settings)

    return make


METHODS: dict[str, tuple[str, Config]] = {
    "LoRA, alpha": (FLUX, config("LoraConfig", r=4, lora_alpha=12)),
    "LoRA, alpha by the rank's root": (FLUX, config("LoraConfig", r=4, lora_alpha=12, use_rslora=True)),
    "LoRA, ranks and alphas of layers": (
        FLUX,
        config("LoraConfig", r=4, lora_alpha=8, rank_pattern={"attn.to_q": 8}, alpha_pattern={"ff.net.2": 2}),
    ),
    "LoRA on convolutions": (SDXL, config("LoraConfig", r=4, lora_alpha=12)),
    "LoHa": (FLUX, config("LoHaConfig", r=4, alpha=12)),
    "LoKr": (FLUX, config("LoKrConfig", r=4, alpha=12)),
    "LoKr, both sides whole": (FLUX, config("LoKrConfig", r=16, alpha=4)),
    "OFT": (FLUX, config("OFTConfig", oft_block_size=8)),
    "OFT, three terms": (FLUX, config("OFTConfig", oft_block_size=8, num_cayley_neumann_terms=3)),
    "OFT, exact": (FLUX, config("OFTConfig", oft_block_size=8, use_cayley_neumann=False)),
    "OFT, one block": (FLUX, config("OFTConfig", oft_block_size=8, block_share=True)),
    "OFT, constrained": (FLUX, config("OFTConfig", oft_block_size=8, coft=True, eps=0.3)),
    "OFT on 1x1 convolutions": (SDXL, config("OFTConfig", oft_block_size=4)),
    "BOFT": (FLUX, config("BOFTConfig", boft_block_size=8)),
    "(IA)³": (FLUX, config("IA3Config", feedforward_modules=[LAYERS[FLUX][1]])),
    "(IA)³ on convolutions": (SDXL, config("IA3Config", feedforward_modules=[LAYERS[SDXL][0]])),
}  # fmt: skip


def trained(denoiser: Any, layers: tuple[str, ...], make: Config) -> Any:
    """A copy of the denoiser in peft's hands, with random values in its adapter."""
    import peft

    torch.manual_seed(11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(copy.deepcopy(denoiser), make(list(layers)))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.data = torch.randn_like(weight) * 0.3 + (1.0 if "ia3_l" in name or "boft_s" in name else 0.0)
    return model.eval()


@pytest.mark.parametrize("name", METHODS)
def test_a_file_of_peft_does_what_peft_does(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    model, make = METHODS[name]
    base = handle_for(tiny_models[model], precision="fp32")
    loaded = borrow(base)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = trained(loaded.denoiser, LAYERS[model], make)
        theirs.save_pretrained(tmp_path)
        borrow(with_loras(base, (tmp_path / "adapter_model.safetensors", 1.0, 1.0)))
        (found,) = loaded.loras.loaded.values()
        assert found.note is None
        for target in LAYERS[model]:
            layer: Any = loaded.denoiser.get_submodule(target)
            values = inputs_for(layer.base_layer)
            expected = theirs.base_model.model.get_submodule(target)(values)
            assert torch.allclose(layer(values), expected, atol=1e-4, rtol=1e-4), target
            assert not torch.allclose(expected, layer.base_layer(values), atol=1e-2), target


def test_settings_that_diffusers_wrote_are_heeded(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """``lora_adapter_metadata`` in the header: the image equals that of diffusers, which reads it too."""
    from diffusers import FluxPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    base = handle_for(tiny_models[FLUX])
    loaded = borrow(base)
    settings = LoraConfig(r=4, lora_alpha=16, target_modules=list(LAYERS[FLUX]), init_lora_weights=False)
    copied: Any = copy.deepcopy(loaded.denoiser)
    copied.add_adapter(settings)
    FluxPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(copied),
        transformer_lora_adapter_metadata=copied.peft_config["default"].to_dict(),
    )
    file = tmp_path / "pytorch_lora_weights.safetensors"
    with torch.no_grad():
        borrow(with_loras(base, (file, 1.0, 1.0)))
        for target in LAYERS[FLUX]:
            values = inputs_for(copied.get_submodule(target).base_layer)
            expected = copied.get_submodule(target)(values)
            assert torch.equal(loaded.denoiser.get_submodule(target)(values), expected), target


REFUSED: dict[str, tuple[dict[str, Any] | None, str]] = {
    "no settings": (None, "OFT of peft without its settings; keep adapter_config.json beside the file"),
    "of an old peft": ({"peft_type": "OFT"}, "OFT of a peft before 0.18"),
    "not an object": ([], "of its settings, its JSON is not an object"),  # type: ignore[dict-item]
    "alpha is a word": ({"lora_alpha": "much", "r": 4}, "of its settings, lora_alpha is 'much'"),
    "rank 0": ({"lora_alpha": 4, "r": 0}, "of its settings, r is 0"),
    "a pattern that is none": ({"alpha_pattern": {"(": 4}}, "of its settings, missing"),
    "another base": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 changed the model's own weights"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_settings_that_are_missing_or_odd_refuse_the_file(
    tiny_models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from neurolux.errors import InvalidParameter

    settings, message = REFUSED[kind]
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{QKV[0]}.oft_R.weight": torch.ones(8, 6)}, path)
    if settings is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidParameter, match=f"adapter_model.safetensors.*{message}"):
        borrow(with_loras(handle_for(tiny_models[FLUX]), (path, 1.0, 1.0)))


def test_settings_count_for_the_file_beside_which_they_lie(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """A folder of LoRAs may hold the settings of one of them."""
    base = handle_for(tiny_models[FLUX])
    state = {f"transformer.{QKV[0]}.lora_{side}.weight": torch.ones(4, 32) for side in "A"}
    state[f"transformer.{QKV[0]}.lora_B.weight"] = torch.ones(32, 4)
    for name in ("adapter_model", "other", "header"):
        noted = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})}
        save_file(state, tmp_path / f"{name}.safetensors", noted if name == "header" else None)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}))
    halves, whole, header = (
        make_image(with_loras(base, (tmp_path / f"{name}.safetensors", strength, 0.0)))
        for name, strength in (("adapter_model", 1.0), ("other", 0.5), ("header", 1.0))
    )
    assert torch.equal(halves, header)
    assert torch.allclose(halves, whole, atol=1e-4)
    assert len(load_file(tmp_path / "other.safetensors")) == 2
