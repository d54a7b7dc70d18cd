"""Krea 2: one stream of image and text tokens, twelve layers of Qwen3-VL as the text, and Wan's VAE.

Two models have the same tensors: Raw, which is guided, and Turbo, which is distilled for eight steps without guidance.
Only ``is_distilled`` of a folder, or the name of a single file, tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog.limits import Defaults, GuidanceLimit, Limits
from ..catalog.models import Model, SchedulerChoice
from ..planning.records import FamilyCosts
from ..weights.stamps import Shapes
from .blocks import BlockLists
from .parts import qwen3, qwen3_vl, wan_vae
from .parts.double_stream import running_steps
from .parts.shapes import USUAL_SIDE, numbered
from .spec import (
    Architecture,
    Component,
    Config,
    Detected,
    Encoding,
    FamilySpec,
    LatentSpace,
    Loras,
    ModelFacts,
    Part,
    PipelineClass,
    Scheduler,
    Signature,
    SingleFiles,
    Tensors,
)

if TYPE_CHECKING:
    import torch


TOKENS = 512
"""Every prompt is padded to this length. The padding takes time, but is not seen."""
BYTES_PER_TOKEN = 79_000
"""Activations of a step per token and byte of the number format. A token is 16x16 pixels, or of text."""
FUSION_VALUES = 205_000_000
"""Activations while the twelve layers of a prompt are fused, whatever the size of the image."""
ENCODE_VALUES = 112_000_000
"""Activations of Qwen3-VL 4B's language model. The outputs of all its layers are kept to the end."""
AFTER_PROMPT = "<|im_end|>\n<|im_start|>assistant\n"
"""What follows a prompt, and counts as tokens of it. The pipeline puts it after the padding."""
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SCHEDULE: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 6400,
    "max_shift": 1.15,
    "shift": 1.0,
    "use_dynamic_shifting": True,
}
"""Settings of the scheduler in the published folders."""
TURBO_SHIFT = 1.15
"""The shift of Turbo, at every size."""
TURBO_STEPS = 8
TURBO_NAME = re.compile(r"turbo", re.IGNORECASE)
TEXT_WIDTH = "joined_text_dim"
"""Key in the denoiser's configuration: the width of all layers of a token's text, one behind the other."""

# The transformer

BLOCKS = BlockLists(("text_fusion.layerwise_blocks", "text_fusion.refiner_blocks", "transformer_blocks"))
FULL_PRECISION = ("norm", "norm1", "norm2", "norm_q", "norm_k")
"""As in Krea2Transformer2DModel, which adds one to their weights."""
ORIGINAL_PROJECTOR = "txtfusion.projector.weight"
DIFFUSERS_PROJECTOR = "text_fusion.projector.weight"
OUTSIDE = {
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.0": "txt_in.norm",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
    "last.linear": "final_layer.linear",
    "last.norm": "final_layer.norm",
    "last.modulation": "final_layer",
}
"""The authors' names outside of the blocks, with diffusers' names."""
BLOCK_LISTS = {
    "txtfusion.layerwise_blocks": BLOCKS.lists[0],
    "txtfusion.refiner_blocks": BLOCKS.lists[1],
    "blocks": BLOCKS.lists[2],
}
LAYERS = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "attn.qknorm.qnorm": "attn.norm_q",
    "attn.qknorm.knorm": "attn.norm_k",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
    "prenorm": "norm1",
    "postnorm": "norm2",
    "mod": "",
}
"""The authors' names in a block, with diffusers' names; empty for the block itself, which has a table."""
KINDS = {"scale": "weight", "lin": "scale_shift_table"}
"""The authors' names of a norm's weight and of a table of modulations."""
BLOCK = re.compile(r"((?:txtfusion\.\w+_)?blocks)\.(\d+)\.(.+)")


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of Krea2Transformer2DModel. Of a head's rotary axes, a quarter encodes the frame, and the rest is
    split between row and column."""
    width, packed = shapes["img_in.weight"]
    first, text = "transformer_blocks.0", "text_fusion.layerwise_blocks.0"
    head, text_head = (shapes[f"{block}.attn.norm_q.weight"][0] for block in (first, text))
    text_width = shapes[f"{text}.norm1.weight"][0]
    return {
        "in_channels": packed,
        "num_layers": numbered(shapes, r"transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "num_key_value_heads": shapes[f"{first}.attn.to_k.weight"][0] // head,
        "intermediate_size": shapes[f"{first}.ff.gate.weight"][0],
        "timestep_embed_dim": shapes["time_embed.linear_1.weight"][1],
        "text_hidden_dim": text_width,
        "num_text_layers": shapes[DIFFUSERS_PROJECTOR][1],
        "text_num_attention_heads": text_width // text_head,
        "text_num_key_value_heads": shapes[f"{text}.attn.to_k.weight"][0] // text_head,
        "text_intermediate_size": shapes[f"{text}.ff.gate.weight"][0],
        "num_layerwise_text_blocks": numbered(shapes, r"text_fusion\.layerwise_blocks\.(\d+)\."),
        "num_refiner_text_blocks": numbered(shapes, r"text_fusion\.refiner_blocks\.(\d+)\."),
        "axes_dims_rope": (head // 4, head * 3 // 8, head * 3 // 8),
    }


def empty(config: Config, folder: Path | None) -> Any:
    """The transformer without weights."""
    from diffusers import Krea2Transformer2DModel

    made: Any = Krea2Transformer2DModel.from_config(Krea2Transformer2DModel.load_config(folder) if folder else config)
    made.register_to_config(**{TEXT_WIDTH: made.config.num_text_layers * made.config.text_hidden_dim})
    return made


def renamed_stem(stem: str) -> str | None:
    """diffusers' name of a layer; None for one that it does not have."""
    block = BLOCK.fullmatch(stem)
    if block is None:
        return OUTSIDE.get(stem)
    layer = LAYERS.get(block[3])
    return None if layer is None else f"{BLOCK_LISTS[block[1]]}.{block[2]}.{layer}".rstrip(".")


def renamed_original(tensors: Tensors) -> Tensors:
    """Rename the authors' tensors to diffusers' names."""
    found: Tensors = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        target = renamed_stem(stem)
        if target is not None:
            found[f"{target}.{KINDS.get(kind, kind)}"] = value
    return found


TRANSFORMER = Part(
    name="krea2-transformer",
    title="Krea 2 transformer",
    empty=empty,
    config=config,
    signatures=(
        Signature("original", ORIGINAL_PROJECTOR, beside=("first.weight",)),
        Signature("diffusers", DIFFUSERS_PROJECTOR, beside=("img_in.weight",)),
    ),
    renames={"original": renamed_original},
    blocks=BLOCKS,
    full_precision=FULL_PRECISION,
)

# Pipelines


def takes_joined_layers() -> type:
    """Mixin for embeddings whose layers are one behind the other: a CONDITIONING has three axes."""

    class TakesJoinedLayers:
        text_encoder_select_layers: tuple[int, ...]

        def encode_prompt(self, *args: Any, prompt_embeds: torch.Tensor | None = None, **given: Any) -> Any:
            """diffusers' method, for embeddings (1, tokens, layers * width)."""
            if prompt_embeds is not None and prompt_embeds.ndim == 3:
                prompt_embeds = prompt_embeds.unflatten(-1, (len(self.text_encoder_select_layers), -1))
            return super().encode_prompt(  # pyright: ignore[reportAttributeAccessIssue]
                *args, prompt_embeds=prompt_embeds, **given
            )

    return TakesJoinedLayers


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """The outputs of twelve layers of Qwen3-VL, (1, tokens, layers * width), and which tokens are no padding."""
    states, mask = pipe.get_text_hidden_states(text, tokens, device)
    return {"prompt_embeds": states.flatten(2).clone(), "prompt_embeds_mask": mask.clone()}


def unpack(pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Unpack tokens of 2x2 latent pixels to (1, C, h, w)."""
    return pipe._unpack_latents(latents, height, width)[:, :, 0]


def pipeline_options(index: Config) -> dict[str, Any]:
    """What a folder's ``model_index.json`` says besides its components. The defaults are those of the real models."""
    names = ("text_encoder_select_layers", "is_distilled", "patch_size")
    return {name: index[name] for name in names if name in index}


def misfits(configs: Mapping[str, Config]) -> Iterator[tuple[str, int, int, str]]:
    """Compare the text encoder and the VAE with the transformer."""
    main = configs["transformer"]
    if "text_encoder" in configs:
        yield "text_encoder", qwen3_vl.text_width(configs["text_encoder"]), main["text_hidden_dim"], "features"
    if "vae" in configs:
        yield "vae", configs["vae"]["z_dim"], main["in_channels"] // 4, "latent channels"


# Facts about a model, from its files


def raw_facts(side: int) -> ModelFacts:
    """The guided model. Its authors' example has ``guidance_scale=4.5``, which is 5.5 as others count."""
    return ModelFacts(Defaults(side, side, 28, 5.5), Limits(negative_prompt=True), TOKENS)


def turbo_facts(side: int) -> ModelFacts:
    """The distilled model."""
    return ModelFacts(Defaults(side, side, TURBO_STEPS, 0.0), Limits(guidance_scale=GuidanceLimit(0.0, 1.0)), TOKENS)


def folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts:
    """A diffusers folder."""
    return turbo_facts(USUAL_SIDE) if read("model_index.json").get("is_distilled") else raw_facts(USUAL_SIDE)


def turbo_steps(name: str) -> int | None:
    """The number of steps of a Turbo model, by the name of its file; None for Raw."""
    return TURBO_STEPS if TURBO_NAME.search(name) else None


def turbo(model: Model, steps: int) -> Model:
    """``model`` as a Turbo model."""
    found = turbo_facts(model.defaults.width)
    return replace(
        model,
        defaults=found.defaults,
        limits=found.limits,
        scheduler=SchedulerChoice(SCHEDULER, {"base_shift": TURBO_SHIFT, "max_shift": TURBO_SHIFT}),
    )


# LoRA files

OWN_LAYER = re.compile(
    r"txtfusion|text_fusion|transformer_blocks[._]\d+[._](?:attn[._]to_gate|ff[._](?:gate|up|down))[._]"
    r"|(?:^|\.|lora_unet_|lycoris_)blocks[._]\d+[._](?:attn[._](?:w[qkvo]|gate)|mlp[._](?:gate|up|down))[._]"
)
"""In the names of layers that no other model has."""
ATTENTION = re.compile(r"(?<!single[._])transformer_blocks[._](\d+)[._]attn[._]to_[qkv][._](?:lora_A|lora_down)[._]")
OTHERS_BLOCKS, WIDTH = 8, 6144
"""Of FLUX.2 dev, whose first blocks have the same names and the same width."""


def detect_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA by its layers; one of the attention alone, under diffusers' names, by its blocks."""
    if any(OWN_LAYER.search(name) for name in header):
        return Detected("krea2", certain=True)
    found = ((ATTENTION.search(name), shape) for name, shape in header.items())
    deep = any(match and int(match[1]) >= OTHERS_BLOCKS and shape[-1] == WIDTH for match, shape in found)
    return Detected("krea2", certain=True) if deep else None


def original_names(transformer: Any) -> dict[str, tuple[str, ...]]:
    """The authors' name of each layer, with diffusers'."""
    found = {stem: (target,) for stem, target in OUTSIDE.items()}
    for blocks, target in BLOCK_LISTS.items():
        for number in range(len(transformer.get_submodule(target))):
            for stem, layer in LAYERS.items():
                if layer:
                    found[f"{blocks}.{number}.{stem}"] = (f"{target}.{number}.{layer}",)
    return found


# The family


def step_operations(parameters: int, width: int, height: int) -> float:
    """Operations of a step: most weights on every token, and attention."""
    tokens = width * height / 256 + TOKENS
    return parameters * (1.9 * tokens + 5.4e-5 * tokens**2)


def architectures() -> Mapping[str, Architecture]:
    """The published models."""
    from .parts import architectures as parts

    made: Architecture = {
        "text_encoder": parts.qwen3_vl_4b,
        "transformer": lambda: empty({}, None),
        "vae": parts.qwen_image_vae,
    }
    return {"krea-2-turbo": made, "krea-2-raw": made}


FAMILY = FamilySpec(
    name="krea2",
    title="Krea 2",
    components={
        "text_encoder": Component(qwen3_vl.QWEN3_VL),
        "transformer": Component(TRANSFORMER),
        "vae": Component(wan_vae.WAN_VAE),
    },
    denoiser="transformer",
    costs=FamilyCosts(
        denoiser="transformer",
        sample_values=lambda width, height: max(FUSION_VALUES, (width * height / 256 + TOKENS) * BYTES_PER_TOKEN),
        step_operations=step_operations,
        compressible=frozenset({"transformer", "text_encoder"}),
        overflows_fp16=frozenset({"text_encoder"}),
        guides_at_once=False,
        encode_values=ENCODE_VALUES,
        vae=wan_vae.COSTS,
    ),
    pipelines={("text-to-image", None): PipelineClass("Krea2Pipeline", (takes_joined_layers,))},
    encoding=Encoding(encode, width=TEXT_WIDTH, template=lambda tokenizer: AFTER_PROMPT),
    guidance=lambda usual: max(usual - 1, 0.0),
    latent=LatentSpace(
        to_raw=wan_vae.to_raw,
        from_raw=wan_vae.from_raw,
        comfy_format="Wan21",
        channels=wan_vae.CHANNELS,
        unpack=unpack,
    ),
    folders={"Krea2Pipeline": folder},
    running_steps=running_steps,
    pipeline_options=pipeline_options,
    misfits=misfits,
    tokenizers=lambda tokens: {"tokenizer": qwen3.tokenizer()},
    scheduler=lambda configs: Scheduler(SCHEDULER, SCHEDULE),
    single_files=SingleFiles(
        preferred={"text_encoder": qwen3_vl.FILES, "vae": wan_vae.FILES},
        foreign={"text_encoder": qwen3_vl.TEXT_ONLY_FILES, "vae": wan_vae.WAN_FILES},
        examples={
            "transformer": "krea2_turbo_fp8_scaled.safetensors",
            "text_encoder": "qwen3vl_4b_fp8_scaled.safetensors",
            "vae": "qwen_image_vae.safetensors",
        },
        facts=lambda configs: raw_facts(USUAL_SIDE),
        steps_of=turbo_steps,
        distilled=turbo,
    ),
    loras=Loras(detect_lora, original_names=original_names),
    architectures=architectures,
)
