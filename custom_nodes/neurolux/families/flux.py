"""FLUX.1: schnell, dev, Fill and Kontext.

A model with guidance embeddings behaves like dev, one without them like schnell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog.limits import Defaults, GuidanceLimit, Limits, StepLimit
from ..planning.records import FamilyCosts
from ..weights.stamps import Shapes
from .blocks import BlockLists
from .parts import t5
from .parts.autoencoder import VAE
from .parts.clip import CLIP_L
from .parts.clip import tokenizer as clip_tokenizer
from .parts.shapes import children, numbered, sensible_side
from .placed import given_latents
from .spec import (
    Architecture,
    Component,
    Config,
    ControlKind,
    Controls,
    Detected,
    Encoding,
    FamilySpec,
    LatentSpace,
    LoaderNode,
    Loras,
    ModelFacts,
    Part,
    PipelineClass,
    Scheduler,
    Signature,
    SingleFiles,
    Tensors,
    TrainingBatch,
    TrainingFormula,
)

if TYPE_CHECKING:
    import torch


BLOCKS = BlockLists(("transformer_blocks", "single_transformer_blocks"))
TEXT_TOKENS = 512
BYTES_PER_TOKEN = 54_000
"""Activations of a step per token and byte of the number format. A token is 16x16 pixels, or a text token."""
EDIT_PIXELS = 1024 * 1024
"""FluxKontextPipeline scales its input image to about this many pixels."""
MASK_CHANNELS = 256
"""A mask of 16x16 pixels for each token of FLUX.1 Fill."""
SCALING, SHIFT = 0.3611, 0.1159
SCHEDULES: dict[bool, dict[str, Any]] = {
    True: {"shift": 3.0, "use_dynamic_shifting": True},
    False: {"shift": 1.0, "use_dynamic_shifting": False},
}
"""Settings of FlowMatchEulerDiscreteScheduler with guidance embeddings (dev) and without (schnell)."""

# The transformer


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of FluxTransformer2DModel. Of a head's rotary axes, an eighth encodes the image's index, and the
    rest is split between row and column."""
    width = shapes["x_embedder.weight"][0]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    axis = head // 8
    return {
        "patch_size": 1,
        "in_channels": shapes["x_embedder.weight"][1],
        "out_channels": shapes["proj_out.weight"][0],
        "num_layers": numbered(shapes, r"transformer_blocks\.(\d+)\."),
        "num_single_layers": numbered(shapes, r"single_transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": (axis, (head - axis) // 2, (head - axis) // 2),
    }


def empty(config: Config, folder: Path | None) -> Any:
    """The transformer without weights."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(folder) if folder else config)


def load_gguf(tensors: Tensors, config: Config, compute: torch.dtype) -> Any:
    """The transformer with GGUF weights, loaded by diffusers. Each layer decodes its own weights when it is called."""
    import json
    import tempfile

    from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig

    with tempfile.TemporaryDirectory() as folder:  # from_single_file only accepts a configuration as a folder
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return FluxTransformer2DModel.from_single_file(
            tensors, config=folder, quantization_config=GGUFQuantizationConfig(compute_dtype=compute), dtype=compute
        )


OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
DOUBLE = {
    "img_mod.lin": ["norm1.linear"],
    "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.norm.query_norm": ["attn.norm_q"],
    "img_attn.norm.key_norm": ["attn.norm_k"],
    "txt_attn.norm.query_norm": ["attn.norm_added_q"],
    "txt_attn.norm.key_norm": ["attn.norm_added_k"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
}
SINGLE = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
    "norm.query_norm": ["attn.norm_q"],
    "norm.key_norm": ["attn.norm_k"],
}
BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def renamed_original(tensors: Tensors) -> Tensors:
    """Rename BFL's tensors to diffusers' names. Fused projections are split into views, so nothing is copied.

    diffusers' own function assumes a width of 3072 and copies all weights, 24 GB, before the first can be used.
    """
    import torch

    width = tensors["img_in.weight"].shape[0]
    found: Tensors = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        block = BLOCK.fullmatch(stem)
        if block is None:
            target = OUTSIDE.get(stem)
            if target == "norm_out.linear" and value.numel() > 1:
                value = torch.cat(list(reversed(value.chunk(2, dim=0))), dim=0)  # diffusers has scale before shift
            if target is not None:
                found[f"{target}.{kind}"] = value
            continue
        double, number, layer = block[1] == "double", block[2], block[3]
        targets = (DOUBLE if double else SINGLE).get(layer)
        if targets is None:
            continue
        group = "transformer_blocks" if double else "single_transformer_blocks"
        kind = "weight" if kind == "scale" else kind
        for target, piece in zip(targets, pieces(value, len(targets), width), strict=True):
            found[f"{group}.{number}.{target}.{kind}"] = piece
    return found


def pieces(value: torch.Tensor, count: int, width: int) -> list[torch.Tensor]:
    """Split the rows of a fused projection: three parts of ``width``, then the rest. Every part shares a scale."""
    if count == 1:
        return [value]
    if value.numel() == 1:
        return [value] * count
    sizes = [width] * 3
    return list(value.split(sizes if count == 3 else [*sizes, value.shape[0] - 3 * width], dim=0))


TRANSFORMER = Part(
    name="flux-transformer",
    title="FLUX transformer",
    empty=empty,
    config=config,
    signatures=(
        Signature(
            "original",
            "double_blocks.0.img_attn.norm.key_norm.scale",
            beside="single_blocks.0.linear1.weight",
        ),
        Signature(
            "original",
            "double_blocks.0.img_attn.norm.key_norm.weight",  # in files of some converters
            beside="single_blocks.0.linear1.weight",
        ),
        Signature(
            "diffusers",
            "transformer_blocks.0.attn.norm_added_k.weight",
            beside="single_transformer_blocks.0.proj_mlp.weight",
        ),
    ),
    renames={"original": renamed_original},
    blocks=BLOCKS,
    load_gguf=load_gguf,
)

# Pipelines


def keeps_its_shape() -> type:
    """Mixin that stops a LoRA from changing the shape of the shared transformer.

    diffusers' loader compares shapes with the weights. Stored weights (weights/quantize.py) are not in the state dict
    under that name, and building each would take long. ``refuse_widening`` rejects LoRAs that are too wide, and peft
    rejects all other misfits.
    """

    class KeepsItsShape:
        @classmethod
        def _maybe_expand_transformer_param_shape_or_error_(cls, *_: object, **__: object) -> bool:
            return False

        @classmethod
        def _maybe_expand_lora_state_dict(cls, transformer: Any, lora_state_dict: dict[str, Any]) -> dict[str, Any]:
            return lora_state_dict

    return KeepsItsShape


def mask_alone() -> type:
    """Mixin for pipelines that inpaint by blending: prepares the mask without encoding the masked image.

    diffusers encodes the masked image at the very end and never uses the result.
    """
    import torch

    class MaskAlone:
        vae_scale_factor: int
        _pack_latents: Callable[..., torch.Tensor]

        def prepare_mask_latents(
            self,
            mask: torch.Tensor,
            masked_image: torch.Tensor,
            batch_size: int,
            num_channels_latents: int,
            num_images_per_prompt: int,
            height: int,
            width: int,
            dtype: torch.dtype,
            device: torch.device,
            generator: torch.Generator,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """The same mask as diffusers', packed like the latents: ``mask`` (1, 1, H, W) sampled per latent pixel."""
            cells = self.vae_scale_factor * 2
            height, width = 2 * (height // cells), 2 * (width // cells)
            mask = torch.nn.functional.interpolate(mask, size=(height, width)).to(device=device, dtype=dtype)
            batch = batch_size * num_images_per_prompt
            mask = mask.repeat(batch // len(mask), num_channels_latents, 1, 1)
            packed = self._pack_latents(mask, batch, num_channels_latents, height, width)
            return packed, packed

    return MaskAlone


CONTROL_PIPELINE = PipelineClass("FluxControlNetPipeline")
CONTROL_IMG2IMG = PipelineClass("FluxControlNetImg2ImgPipeline", (given_latents,))
CONTROL_INPAINT = PipelineClass("FluxControlNetInpaintPipeline", (given_latents, mask_alone))


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """T5's embeddings of all tokens, and CLIP's pooled embedding."""
    embeds, pooled, _ = pipe.encode_prompt(text, device=device, max_sequence_length=tokens)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def unpack(pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Unpack tokens of 2x2 latent pixels to (1, C, h, w)."""
    return pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)


def running_steps(steps: int, strength: float) -> int:
    """How many of ``steps`` run. FLUX's pipelines round up."""
    return steps - int(max(steps - min(steps * strength, steps), 0))


def misfits(configs: Mapping[str, Config]) -> Iterator[tuple[str, int, int, str]]:
    """Compare the text encoders and the VAE with the transformer."""
    main = configs["transformer"]
    if "text_encoder" in configs:
        yield "text_encoder", configs["text_encoder"]["hidden_size"], main["pooled_projection_dim"], "features"
    if "text_encoder_2" in configs:
        yield "text_encoder_2", configs["text_encoder_2"]["d_model"], main["joint_attention_dim"], "features"
    if "vae" in configs:
        yield "vae", configs["vae"]["latent_channels"], main["out_channels"] // 4, "latent channels"


def tokenizers(tokens: int) -> dict[str, Any]:
    """The tokenizers of CLIP and T5."""
    return {"tokenizer": clip_tokenizer(), "tokenizer_2": t5.tokenizer(tokens)}


def scheduler(configs: Mapping[str, Config]) -> Scheduler:
    """The scheduler of dev or schnell."""
    return Scheduler("FlowMatchEulerDiscreteScheduler", SCHEDULES[bool(configs["transformer"]["guidance_embeds"])])


# Facts about a model, from its files


def facts(side: int, *, guided: bool) -> ModelFacts:
    """The facts about dev (``guided``) or schnell."""
    defaults = Defaults(side, side, 28 if guided else 4, 3.5 if guided else 0.0)
    limits = Limits(num_inference_steps=StepLimit(1, 100 if guided else 50))
    return ModelFacts(defaults, limits, max_sequence_length=512 if guided else 256)


def plain_folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts:
    """A diffusers folder of dev or schnell."""
    side = sensible_side(read("vae/config.json").get("sample_size"))
    return facts(side, guided=bool(read("transformer/config.json").get("guidance_embeds")))


def fill_folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts:
    """FLUX.1 Fill: like dev, with the steps and the guidance that its authors recommend."""
    return filling(plain_folder(read))


def filling(plain: ModelFacts) -> ModelFacts:
    """The facts about Fill, whose other facts are ``plain``."""
    defaults = replace(plain.defaults, num_inference_steps=50, guidance_scale=30.0)
    limits = replace(plain.limits, guidance_scale=GuidanceLimit(0.0, 100.0))
    return replace(plain, purpose="fill", defaults=defaults, limits=limits)


def fills(config: Config) -> bool:
    """Whether the transformer takes the masked image too, as many channels as it returns, and a mask of 16x16 pixels
    a token."""
    return config["in_channels"] == 2 * config["out_channels"] + MASK_CHANNELS


def file_facts(configs: Mapping[str, Config]) -> ModelFacts:
    """The facts about single files."""
    main = configs["transformer"]
    plain = facts(1024, guided=bool(main["guidance_embeds"]))
    return filling(plain) if fills(main) else plain


def edit_folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts:
    """FLUX.1 Kontext: like dev, with the guidance that its authors recommend."""
    plain = plain_folder(read)
    return replace(plain, purpose="edit", defaults=replace(plain.defaults, guidance_scale=2.5))


def example_for(model: str, component: str) -> str | None:
    """The name of BFL's file with the transformer of a catalog model."""
    if component != "transformer" or not model.startswith("flux"):
        return None
    return f"{model.replace('flux', 'flux1', 1)}.safetensors"


# LoRA files

LORA_NAME = re.compile(
    r"(?:^|[._])(?:double_blocks|single_blocks|single_transformer_blocks)[._]\d"
    r"|^(?:base_model[._]model[._]|lycoris_|lora_|diffusion_model[._])*(?:transformer[._])?transformer_blocks[._]\d"
    r"|(?:DenseReluDense|SelfAttention)[._]|(?:^|[._])t5xxl[._]"
)
"""In the names of a LoRA's tensors, whoever trained it. SDXL has ``transformer_blocks`` only further inside,
and no T5."""


def detect_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA for FLUX, and a Control-LoRA, which the pack cannot use."""
    if any("lora_" not in name and name.endswith(("query_norm.scale", "norm_q.weight")) for name in header):
        return Detected("flux", "it is a Control-LoRA, which widens the model's input; use a ControlNet instead")
    return Detected("flux") if any(LORA_NAME.search(name) for name in header) else None


def refuse_widening(transformer: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for a LoRA with a wider input than the model: diffusers would rebuild the shared layer."""
    modules = dict(transformer.named_modules())
    for key, weight in state.items():
        name = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        module: Any = modules.get(name)
        if key.endswith(".lora_A.weight") and module is not None and weight.shape[1] > module.in_features:
            raise ValueError(f"layer {name} takes {module.in_features} values and the file has {weight.shape[1]}")


def original_names(transformer: Any) -> dict[str, tuple[str, ...]]:
    """BFL's name of each layer, with diffusers' layers that it joins."""
    found: dict[str, tuple[str, ...]] = {stem: (target,) for stem, target in OUTSIDE.items()}
    for groups, blocks, layers in (
        ("double_blocks", "transformer_blocks", DOUBLE),
        ("single_blocks", "single_transformer_blocks", SINGLE),
    ):
        for number in range(len(getattr(transformer, blocks))):
            for stem, targets in layers.items():
                found[f"{groups}.{number}.{stem}"] = tuple(f"{blocks}.{number}.{target}" for target in targets)
    for number in range(len(transformer.single_transformer_blocks)):  # XLabs leaves the rest of linear1 alone
        targets = SINGLE["linear1"][:3]
        found[f"single_blocks.{number}.qkv"] = tuple(f"single_transformer_blocks.{number}.{one}" for one in targets)
    return found


# ControlNets

CONTROL_CLASS = "FluxControlNetModel"
CONTROL_MODES = {"canny": 0, "tile": 1, "depth": 2, "blur": 3, "pose": 4, "gray": 5, "low quality": 6}
"""From the model cards of InstantX/FLUX.1-dev-Controlnet-Union and Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro."""
CONTROL_LAYERS, CONTROL_WIDTH = 15, 3072
"""Size of the published ControlNets (InstantX and Shakker-Labs: 5 double and 10 single blocks)."""


def detect_control(header: Shapes) -> Detected | None:
    """Recognize a ControlNet for FLUX. One with its authors' own tensor names cannot be used."""
    if any(name.startswith("double_blocks.") for name in header):
        return Detected(
            "flux",
            "it has its authors' own tensor names, which diffusers cannot read; "
            "use the version for diffusers (a folder with config.json, or one file from it)",
        )
    return Detected("flux") if "controlnet_x_embedder.weight" in header else None


def control_architecture(transformer: Any, header: Shapes) -> tuple[str, dict[str, Any]]:
    """The configuration: widths and depths from the shapes, rotary axes from the transformer."""
    inner, channels = header["x_embedder.weight"]
    head = header["transformer_blocks.0.attn.norm_q.weight"][0]
    modes = header.get("controlnet_mode_embedder.weight")
    hint = header.get("input_hint_block.conv_out.weight")
    return CONTROL_CLASS, {
        "patch_size": 2 if hint else 1,
        "in_channels": channels,
        "num_layers": children(header, "transformer_blocks."),
        "num_single_layers": children(header, "single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "joint_attention_dim": header["context_embedder.weight"][1],
        "pooled_projection_dim": header["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in header,
        "axes_dims_rope": list(transformer.config.axes_dims_rope),
        "num_mode": modes[0] if modes else None,
        "conditioning_embedding_channels": hint[0] if hint else None,
    }


def planned_control(header: Shapes) -> tuple[int, bool]:
    """Each layer passes on its output for every token, 16x16 pixels. A model with hint blocks reads the image, not its
    latent."""
    layers = children(header, "controlnet_blocks.") + children(header, "controlnet_single_blocks.")
    width = header.get("x_embedder.weight", (CONTROL_WIDTH,))[0]
    return (layers or CONTROL_LAYERS) * width, not any(name.startswith("input_hint_block.") for name in header)


def control_activations(module: Any, width: int, height: int) -> int:
    """Each layer passes on its output for every token, 16x16 pixels."""
    layers = len(module.controlnet_blocks) + len(module.controlnet_single_blocks)
    return layers * module.inner_dim * (width // 16) * (height // 16)


def folder_width(config: Config) -> int | None:
    """The inner width in the configuration of a ControlNet."""
    heads, width = config.get("num_attention_heads"), config.get("attention_head_dim")
    return heads * width if heads and width else None


def combined(kind: ControlKind, modules: list[Any]) -> Any:
    """One module that runs all ``modules``."""
    from diffusers import FluxMultiControlNetModel

    return FluxMultiControlNetModel(modules)


def conflict(first: Any, other: Any) -> str | None:
    """Why two ControlNets cannot work together; None if they can."""

    def reads_pixels(module: Any) -> bool:
        return getattr(module, "input_hint_block", None) is not None

    if reads_pixels(first) != reads_pixels(other):
        return "one reads the image itself and the other its latent"
    if first.config.guidance_embeds != other.config.guidance_embeds:
        return "one takes the guidance scale and the other does not"
    return None


def make_control(transformer: Any) -> Any:
    """As those of Shakker-Labs and InstantX."""
    from diffusers import FluxControlNetModel

    kept = ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "pooled_projection_dim",
            "guidance_embeds", "axes_dims_rope")  # fmt: skip
    return FluxControlNetModel(
        **{name: transformer.config[name] for name in kept},
        num_layers=CONTROL_LAYERS // 3, num_single_layers=CONTROL_LAYERS // 3 * 2,
    )  # fmt: skip


CONTROLS = Controls(
    modes=CONTROL_MODES,
    blocks=BLOCKS,
    published=(CONTROL_LAYERS, CONTROL_LAYERS * CONTROL_WIDTH, True),
    planned=planned_control,
    activations=control_activations,
    architecture=control_architecture,
    single_file=lambda header: False,
    widths=lambda module: (module.inner_dim, module.config.in_channels, module.config.joint_attention_dim),
    model_width=lambda denoiser: denoiser.inner_dim,
    file_width=lambda header: header["x_embedder.weight"][0] if "x_embedder.weight" in header else None,
    folder_width=folder_width,
    combined=combined,
    conflict=conflict,
    make=make_control,
    image_argument=lambda kind, task: "control_image",
    passes_mode=lambda kind: True,
    mode_count=lambda config: config["num_mode"],
    encodes_images=True,
)

# Training

DOUBLE_BLOCK_VALUES = 22.1
SINGLE_BLOCK_VALUES = 19.1
"""Values that a block keeps for the backward pass, per token and per unit of its width."""
TRAINING_GUIDANCE = 1.0
"""The value for dev's guidance embedding. At 1, an image follows its caption without exaggeration."""


def training_scheduler(config: Config) -> Any:
    """A fresh scheduler: after sampling, the pipeline's own one has the timesteps of the last image."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler.from_config(config)


def compare(denoiser: Any, scheduler: Any, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Rectified flow: predict the velocity from image to noise, at times drawn from a logit-normal distribution.

    The arithmetic is that of diffusers' examples/dreambooth/train_dreambooth_lora_flux.py with ``--weighting_scheme
    logit_normal --guidance_scale 1``.
    """
    import torch
    from diffusers import FluxPipeline
    from diffusers.training_utils import compute_density_for_timestep_sampling

    latents, noise = batch.latents, batch.noise
    device, dtype = latents.device, latents.dtype
    count, channels, height, width = latents.shape
    density = compute_density_for_timestep_sampling("logit_normal", count, 0.0, 1.0, generator=batch.generator)
    last = scheduler.config.num_train_timesteps - 1
    places = (density * (last + 1)).long().clamp(max=last)
    times = scheduler.timesteps[places].to(device)
    levels = scheduler.sigmas[places].to(device, dtype).view(-1, 1, 1, 1)
    noisy = (1.0 - levels) * latents + levels * noise
    embeds = batch.prompt["prompt_embeds"]
    guided = denoiser.config.guidance_embeds
    predicted = denoiser(
        hidden_states=FluxPipeline._pack_latents(noisy, count, channels, height, width),
        timestep=times / 1000,
        guidance=torch.full([count], TRAINING_GUIDANCE, device=device) if guided else None,
        pooled_projections=batch.prompt["pooled_prompt_embeds"],
        encoder_hidden_states=embeds,
        txt_ids=torch.zeros(embeds.shape[1], 3, device=device, dtype=dtype),
        img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, device, dtype),
        return_dict=False,
    )[0]
    return predicted, FluxPipeline._pack_latents(noise - latents, count, channels, height, width)


def kept_values(config: Config, side: int, tokens: int) -> float:
    """The formula was counted on the real architecture at full width, on torch's meta device."""
    width = config["attention_head_dim"] * config["num_attention_heads"]
    per_token = config["num_layers"] * DOUBLE_BLOCK_VALUES + config["num_single_layers"] * SINGLE_BLOCK_VALUES
    return (side * side / 256 + tokens) * width * per_token


def step_operations(parameters: int, width: int, height: int) -> float:
    """Operations of a step: 74.4 TFLOP at 1024x1024 (FlopCounterMode). Attention is quadratic in the tokens."""
    tokens = width * height / 256 + TEXT_TOKENS
    return parameters * (1.085 * tokens + 5.9e-5 * tokens**2)


def architectures() -> Mapping[str, Architecture]:
    """The published models, which differ in their transformers."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    from .parts import architectures as parts

    shared: dict[str, Any] = {
        "text_encoder": parts.clip_l,
        "text_encoder_2": parts.t5_xxl,
        "vae": lambda: AutoencoderKL(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **parts.VAE),
    }

    def model(**config: Any) -> Architecture:
        return {**shared, "transformer": lambda: FluxTransformer2DModel(**config)}

    dev = model(guidance_embeds=True)
    return {
        "flux-schnell": model(guidance_embeds=False),
        "flux-dev": dev,
        "flux-krea-dev": dev,
        "flux-fill-dev": model(guidance_embeds=True, in_channels=384, out_channels=64),
        "flux-kontext-dev": dev,
    }


FAMILY = FamilySpec(
    name="flux",
    title="FLUX",
    components={
        "text_encoder": Component(CLIP_L),
        "text_encoder_2": Component(t5.T5),
        "transformer": Component(TRANSFORMER),
        "vae": Component(VAE, {"scaling_factor": SCALING, "shift_factor": SHIFT}),
    },
    denoiser="transformer",
    costs=FamilyCosts(
        denoiser="transformer",
        sample_values=lambda width, height: (width * height / 256 + TEXT_TOKENS) * BYTES_PER_TOKEN,
        step_operations=step_operations,
        compressible=frozenset({"transformer", "text_encoder_2"}),
        overflows_fp16=frozenset({"text_encoder", "text_encoder_2"}),  # T5 does (diffusers PR 9097)
        fp16_without_bf16=False,
    ),
    pipelines={
        ("text-to-image", None): PipelineClass("FluxPipeline", (keeps_its_shape,)),
        ("image-to-image", None): PipelineClass("FluxImg2ImgPipeline"),
        ("inpaint", None): PipelineClass("FluxInpaintPipeline", (mask_alone,)),
        ("fill", None): PipelineClass("FluxFillPipeline"),
        ("edit", None): PipelineClass("FluxKontextPipeline"),
        ("text-to-image", "plain"): CONTROL_PIPELINE,
        ("text-to-image", "union"): CONTROL_PIPELINE,
        ("image-to-image", "plain"): CONTROL_IMG2IMG,
        ("image-to-image", "union"): CONTROL_IMG2IMG,
        ("inpaint", "plain"): CONTROL_INPAINT,
        ("inpaint", "union"): CONTROL_INPAINT,
    },
    encoding=Encoding(
        encode,
        width="joint_attention_dim",
        pooled="pooled_prompt_embeds",
        pooled_width=lambda config: config.get("pooled_projection_dim"),
        embeds_guidance=lambda config: bool(config["guidance_embeds"]),
    ),
    latent=LatentSpace(
        # like the last lines of pipeline_flux.py
        to_raw=lambda config, latents: (latents / config["scaling_factor"]) + config["shift_factor"],
        from_raw=lambda config, samples: (samples - config["shift_factor"]) * config["scaling_factor"],
        comfy_format="Flux",
        channels=16,
        unpack=unpack,
    ),
    folders={"FluxPipeline": plain_folder, "FluxFillPipeline": fill_folder, "FluxKontextPipeline": edit_folder},
    running_steps=running_steps,
    misfits=misfits,
    tokenizers=tokenizers,
    scheduler=scheduler,
    single_files=SingleFiles(
        preferred={
            "text_encoder": ("clip_l*",),
            "text_encoder_2": ("t5xxl_fp16*", "t5xxl*", "t5-v1_1-xxl*", "t5*"),
            "vae": ("ae.*", "flux*vae*"),
        },
        foreign={"vae": ("*sd3*", "*sd_3*", "*stable*diffusion*3*")},  # the same shapes, with another scale
        examples={
            "transformer": "flux1-schnell.safetensors",
            "text_encoder": "clip_l.safetensors",
            "text_encoder_2": "t5xxl_fp16.safetensors",
            "vae": "ae.safetensors",
        },
        facts=file_facts,
        fills=fills,
        example_for=example_for,
    ),
    loras=Loras(
        detect_lora,
        check=refuse_widening,
        original_names=original_names,
        swapped=(OUTSIDE["final_layer.adaLN_modulation.1"],),
        widens=OUTSIDE["img_in"],
    ),
    controls=CONTROLS,
    detect_control=detect_control,
    control_folder=lambda config: config.get("_class_name") == CONTROL_CLASS,
    control_classes=(CONTROL_CLASS,),
    training=TrainingFormula(
        architecture="flux-1-dev/lora",
        targets=(
            "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
            "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        ),
        scheduler=training_scheduler,
        compare=compare,
        kept_values=kept_values,
    ),
    edit_pixels=EDIT_PIXELS,
    loader=LoaderNode(
        "NeuroLuxLoadFlux",
        "Load FLUX",
        "Loads a FLUX model: flux-schnell (four steps), flux-dev (with guidance), or your own folder.",
    ),
    architectures=architectures,
)  # fmt: skip
