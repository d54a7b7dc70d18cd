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
from .parts import double_stream, t5
from .parts.autoencoder import FLUX_LATENTS, FLUX_VAE_FILES, SD3_VAE_FILES, VAE, shifted_from_raw, shifted_to_raw
from .parts.clip import CLIP_L
from .parts.clip import tokenizer as clip_tokenizer
from .parts.double_stream import (
    BLOCKS,
    DIFFUSERS_KEY_NORM,
    DIFFUSERS_SINGLE,
    INPUTS,
    ORIGINAL_KEY_NORM,
    ORIGINAL_SINGLE,
    inner_width,
    keeps_its_shape,
    mask_alone,
    original_names,
    running_steps,
    unpack,
)
from .parts.flow_matching import noised, training_scheduler
from .parts.placed import given_latents
from .parts.shapes import children, sensible_side
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


TEXT_TOKENS = 512
BYTES_PER_TOKEN = 54_000
"""Activations of a step per token and byte of the number format. A token is 16x16 pixels, or a text token."""
EDIT_PIXELS = 1024 * 1024
"""FluxKontextPipeline scales its input image to about this many pixels."""
MASK_CHANNELS = 256
"""A mask of 16x16 pixels for each token of FLUX.1 Fill."""
SCHEDULES: dict[bool, dict[str, Any]] = {
    True: {"shift": 3.0, "use_dynamic_shifting": True},
    False: {"shift": 1.0, "use_dynamic_shifting": False},
}
"""Settings of FlowMatchEulerDiscreteScheduler with guidance embeddings (dev) and without (schnell)."""

# The transformer


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of FluxTransformer2DModel."""
    return {
        **double_stream.config(shapes),
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
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
    **INPUTS,
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}


def renamed_original(tensors: Tensors) -> Tensors:
    """Rename BFL's tensors to diffusers' names."""
    return double_stream.renamed_original(tensors, OUTSIDE.get)


TRANSFORMER = Part(
    name="flux-transformer",
    title="FLUX transformer",
    empty=empty,
    config=config,
    # The relatives of FLUX.1 have no embedding of a pooled prompt.
    signatures=(
        *(
            Signature("original", ORIGINAL_KEY_NORM.format(kind), beside=(ORIGINAL_SINGLE, "vector_in.in_layer.weight"))
            for kind in ("scale", "weight")
        ),
        Signature(
            "diffusers",
            DIFFUSERS_KEY_NORM,
            beside=(DIFFUSERS_SINGLE, "time_text_embed.text_embedder.linear_1.weight"),
        ),
    ),
    renames={"original": renamed_original},
    blocks=BLOCKS,
    load_gguf=load_gguf,
)

# Pipelines


CONTROL_PIPELINE = PipelineClass("FluxControlNetPipeline")
CONTROL_IMG2IMG = PipelineClass("FluxControlNetImg2ImgPipeline", (given_latents,))
CONTROL_INPAINT = PipelineClass("FluxControlNetInpaintPipeline", (given_latents, mask_alone))


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """T5's embeddings of all tokens, and CLIP's pooled embedding."""
    embeds, pooled, _ = pipe.encode_prompt(text, device=device, max_sequence_length=tokens)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


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
OWN_LAYER = re.compile(
    r"_mod[._]lin|modulation[._]lin|[._]norm1?(_context)?[._]linear|norm_out[._]linear|adaLN"
    r"|vector_in|time_in|guidance_in|time_text_embed"
)
"""In the names of layers that Chroma lacks."""
SMALL_RELATIVE = re.compile(
    r"(?:^|[._])(?:double_blocks[._][0-4][._](?:img|txt)_attn[._](?:qkv|proj)[._]"
    r"|(?<!single_)transformer_blocks[._][0-4][._]attn[._](?:to_[qkv]|to_out|to_add_out|add_[qkv]_proj)[._])"
)
"""In the names of layers that FLUX.2 klein 4B has as well, which is as wide."""


def detect_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA for FLUX, and a Control-LoRA, which the pack cannot use."""
    if any("lora_" not in name and name.endswith(("query_norm.scale", "norm_q.weight")) for name in header):
        return Detected("flux", "it is a Control-LoRA, which widens the model's input; use a ControlNet instead")
    if not any(LORA_NAME.search(name) for name in header):
        return None
    own = any(OWN_LAYER.search(name) for name in header)
    small = all(SMALL_RELATIVE.search(name) for name in header)
    return Detected("flux", also=() if own else ("chroma", "flux2") if small else ("chroma",))


def refuse_widening(transformer: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError for a LoRA with a wider input than the model: diffusers would rebuild the shared layer."""
    modules = dict(transformer.named_modules())
    for key, weight in state.items():
        name = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        module: Any = modules.get(name)
        if key.endswith(".lora_A.weight") and module is not None and weight.shape[1] > module.in_features:
            raise ValueError(f"layer {name} takes {module.in_features} values and the file has {weight.shape[1]}")


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
    return Detected("flux") if {"controlnet_x_embedder.weight", "x_embedder.weight"} <= header.keys() else None


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
    folder_width=inner_width,
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


def compare(denoiser: Any, scheduler: Any, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict the velocity, like diffusers' examples/dreambooth/train_dreambooth_lora_flux.py with
    ``--guidance_scale 1``."""
    import torch
    from diffusers import FluxPipeline

    latents, noise = batch.latents, batch.noise
    device, dtype = latents.device, latents.dtype
    count, channels, height, width = latents.shape
    noisy, times = noised(scheduler, batch)
    embeds = torch.cat([*batch.prompt["prompt_embeds"]])
    guided = denoiser.config.guidance_embeds
    predicted = denoiser(
        hidden_states=FluxPipeline._pack_latents(noisy, count, channels, height, width),
        timestep=times / 1000,
        guidance=torch.full([count], TRAINING_GUIDANCE, device=device) if guided else None,
        pooled_projections=torch.cat([*batch.prompt["pooled_prompt_embeds"]]),
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
    from diffusers import FluxTransformer2DModel

    from .parts import architectures as parts

    shared: dict[str, Any] = {
        "text_encoder": parts.clip_l,
        "text_encoder_2": parts.t5_xxl,
        "vae": parts.flux_vae,
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
        "vae": Component(VAE, FLUX_LATENTS),
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
        to_raw=shifted_to_raw, from_raw=shifted_from_raw, comfy_format="Flux", channels=16, unpack=unpack
    ),
    folders={"FluxPipeline": plain_folder, "FluxFillPipeline": fill_folder, "FluxKontextPipeline": edit_folder},
    running_steps=running_steps,
    misfits=misfits,
    tokenizers=tokenizers,
    scheduler=scheduler,
    single_files=SingleFiles(
        preferred={
            "text_encoder": ("clip_l*",),
            "text_encoder_2": t5.FILES,
            "vae": FLUX_VAE_FILES,
        },
        foreign={"vae": SD3_VAE_FILES},
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
        original_names=lambda denoiser: original_names(denoiser, OUTSIDE),
        swapped=(OUTSIDE["final_layer.adaLN_modulation.1"],),
        widens=OUTSIDE["img_in"],
    ),
    controls=CONTROLS,
    detect_control=detect_control,
    control_folder=lambda config: config.get("_class_name") == CONTROL_CLASS,
    control_classes=(CONTROL_CLASS,),
    training=TrainingFormula(
        architecture="flux-1-dev/lora",
        targets=double_stream.PROJECTIONS,
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
