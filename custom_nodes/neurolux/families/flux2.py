"""FLUX.2 klein: shared modulations, Qwen3 as its text encoder, and a VAE whose latents are normalised in patches.

One model draws from a prompt and edits an image by instruction. The sizes (4B, 9B) differ in their shapes. The
distilled and the base model of a size have the same tensors: only ``is_distilled`` of a folder, or the name of a single
file, tells them apart. FLUX.2 dev has another text encoder, and is not supported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog.limits import Defaults, GuidanceLimit, Limits
from ..catalog.models import Model
from ..planning.records import FamilyCosts
from ..weights.stamps import Shapes
from .parts import autoencoder, double_stream, qwen3
from .parts.autoencoder import DIFFUSERS_MARK, ORIGINAL_MARK, STATISTICS
from .parts.double_stream import BLOCKS, INPUTS, PROJECTIONS, running_steps
from .parts.flow_matching import noised, training_scheduler
from .parts.shapes import USUAL_SIDE, numbered, sensible_side
from .spec import (
    REFERENCE_LATENTS,
    REFERENCE_METHOD,
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
    ReferenceLimits,
    Scheduler,
    Signature,
    SingleFiles,
    Tensors,
    TrainingBatch,
    TrainingFormula,
)

if TYPE_CHECKING:
    import torch


TOKENS = 512
"""Every prompt is padded to this length, and the padding is seen."""
TAPS = (9, 18, 27)
"""The layers of Qwen3 whose outputs are joined to the embedding of a token. Later layers are not run."""
BYTES_PER_TOKEN = 89_000
"""Activations of a step per token and byte of the number format, in the 9B model; the 4B model takes three quarters."""
ENCODE_VALUES = 105_000_000
"""Activations of Qwen3 8B. The outputs of all its layers are kept to the end, though only three are used."""
PATCH = 2
"""The pixels of the VAE's latents that are one latent pixel, along each side."""
EDIT_PIXELS = 1024 * 1024
"""Flux2KleinPipeline scales a larger image down to this many pixels."""
REFERENCES = ReferenceLimits(least_side=64, widest=8)
"""``Flux2ImageProcessor.check_image_input``."""
SCHEDULER = Scheduler("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True})
"""As in the published folders. The pipeline sets the shift by the size of the image and the number of steps."""
DISTILLED_STEPS = 4
BASE_NAME = re.compile(r"(?<![a-z])base(?![a-z])", re.IGNORECASE)
KV_NAME = re.compile(r"(?<![a-z])kv(?![a-z])", re.IGNORECASE)

# The transformer

ORIGINAL_MODULATION = "single_stream_modulation.lin.weight"
DIFFUSERS_MODULATION = "single_stream_modulation.linear.weight"
GUIDANCE = ("guidance_in.in_layer.weight", "time_guidance_embed.guidance_embedder.linear_1.weight")
"""Of FLUX.2 dev, which has the other tensors as well."""
OUTSIDE = {
    **INPUTS,
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
DOUBLE = {
    **{stem: targets for stem, targets in double_stream.DOUBLE.items() if "attn" in stem},
    "img_mlp.0": ["ff.linear_in"],
    "img_mlp.2": ["ff.linear_out"],
    "txt_mlp.0": ["ff_context.linear_in"],
    "txt_mlp.2": ["ff_context.linear_out"],
}
SINGLE = {
    "linear1": ["attn.to_qkv_mlp_proj"],
    "linear2": ["attn.to_out"],
    "norm.query_norm": ["attn.norm_q"],
    "norm.key_norm": ["attn.norm_k"],
}


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of Flux2Transformer2DModel. A head's rotary axes are of one size."""
    width, channels = shapes["x_embedder.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    return {
        "patch_size": 1,
        "in_channels": channels,
        "num_layers": numbered(shapes, r"transformer_blocks\.(\d+)\."),
        "num_single_layers": numbered(shapes, r"single_transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "timestep_guidance_channels": shapes["time_guidance_embed.timestep_embedder.linear_1.weight"][1],
        "mlp_ratio": shapes["transformer_blocks.0.ff.linear_out.weight"][1] / width,
        "axes_dims_rope": (head // 4,) * 4,
        "guidance_embeds": False,
    }


def empty(config: Config, folder: Path | None) -> Any:
    """The transformer without weights."""
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel.from_config(Flux2Transformer2DModel.load_config(folder) if folder else config)


def renamed_original(tensors: Tensors) -> Tensors:
    """Rename BFL's tensors to diffusers' names."""
    return double_stream.renamed_original(tensors, OUTSIDE.get, DOUBLE, SINGLE)


TRANSFORMER = Part(
    name="flux2-klein-transformer",
    title="FLUX.2 klein transformer",
    empty=empty,
    config=config,
    signatures=(
        Signature("original", ORIGINAL_MODULATION, beside=("img_in.weight",), without=GUIDANCE),
        Signature("diffusers", DIFFUSERS_MODULATION, beside=("x_embedder.weight",), without=GUIDANCE),
    ),
    renames={"original": renamed_original},
    blocks=BLOCKS,
)

# The VAE

MOVED = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
"""BFL's names of layers that LDM has outside of its encoder and decoder."""


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of AutoencoderKLFlux2. There is a version with a smaller decoder."""
    plain = autoencoder.config(shapes)
    del plain["force_upcast"]
    levels = range(len(plain["block_out_channels"]))
    decoder = [shapes[f"decoder.up_blocks.{level}.resnets.0.conv2.weight"][0] for level in reversed(levels)]
    return {
        **plain,
        "decoder_block_out_channels": None if decoder == plain["block_out_channels"] else decoder,
        "batch_norm_eps": 1e-4,
        "patch_size": (PATCH, PATCH),
    }


def empty_vae(config: Config, folder: Path | None) -> Any:
    """The VAE without weights."""
    from diffusers import AutoencoderKLFlux2

    return AutoencoderKLFlux2.from_config(AutoencoderKLFlux2.load_config(folder) if folder else config)


def renamed_vae(tensors: Tensors) -> Tensors:
    """Rename tensors in the layout of BFL or LDM. diffusers' converter drops the statistics of the latents."""
    import torch

    moved = {
        next((new + name.removeprefix(old) for old, new in MOVED.items() if name.startswith(old)), name): value
        for name, value in tensors.items()
    }
    statistics = {name: value for name, value in moved.items() if name.startswith("bn.")}
    counted = {"bn.num_batches_tracked": torch.tensor(0, device=statistics[STATISTICS].device)}
    return {**autoencoder.renamed_original(moved), **counted, **statistics}


VAE = Part(
    name="flux2-vae",
    title="FLUX.2 VAE",
    empty=empty_vae,
    config=vae_config,
    signatures=(
        Signature("original", ORIGINAL_MARK, beside=(STATISTICS,)),
        Signature("diffusers", DIFFUSERS_MARK, beside=(STATISTICS,)),
    ),
    renames={"original": renamed_vae},
)


def spread(vae: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the channels of patches, (1, C, 1, 1), with the arithmetic of diffusers."""
    import torch

    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(like.device, like.dtype)
    variance = vae.bn.running_var.view(1, -1, 1, 1)
    return mean, torch.sqrt(variance + vae.config.batch_norm_eps).to(like.device, like.dtype)


def to_vae(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Normalised patches (B, 4C, h, w) as the VAE's latents (B, C, 2h, 2w)."""
    import torch

    mean, deviation = spread(vae, latents)
    return torch.nn.functional.pixel_shuffle(latents * deviation + mean, PATCH)


def from_vae(vae: Any, samples: torch.Tensor) -> torch.Tensor:
    """The VAE's latents (B, C, 2h, 2w) as normalised patches (B, 4C, h, w)."""
    import torch

    patches = torch.nn.functional.pixel_unshuffle(samples, PATCH)
    mean, deviation = spread(vae, patches)
    return (patches - mean) / deviation


def unpack(pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Tokens (1, h * w, C) as (1, C, h, w). What a pipeline returns has been converted for its VAE's decoder: taken
    instead is what it kept."""
    if latents.ndim == 4:
        return pipe.sampled
    cells = pipe.vae_scale_factor * PATCH
    return latents.transpose(1, 2).unflatten(2, (height // cells, width // cells))


# Pipelines


def keeps_sampled() -> type:
    """Mixin for pipelines that return latents as their VAE's decoder takes them: keeps them as the denoiser has them.

    ComfyUI's VAE converts them itself, so these are what a LATENT holds.
    """

    class KeepsSampled:
        sampled: torch.Tensor
        """(1, C, h, w), normalised patches."""

        def _unpack_latents_with_ids(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.sampled = super()._unpack_latents_with_ids(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
            return self.sampled

    return KeepsSampled


def takes_normalised() -> type:
    """Mixin for pipelines that begin with an image: lets them begin with latents as the denoiser has them.

    diffusers takes latents as the VAE's encoder makes them, in patches, and normalises them.
    """

    class TakesNormalised:
        transformer: Any
        vae: Any

        def prepare_latents(self, image: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            """diffusers' method, for pixels (1, 3, H, W) or normalised patches (1, C, h, w)."""
            if image.shape[1] == self.transformer.config.in_channels:
                mean, deviation = spread(self.vae, image)
                image = image * deviation + mean
            return super().prepare_latents(image, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    return TakesNormalised


def takes_reference_latents() -> type:
    """Mixin for pipelines that edit: some of the images are given as latents."""

    class TakesReferenceLatents:
        transformer: Any
        reference_latents: Sequence[torch.Tensor] = ()
        """Of the last images, (1, C, h, w), normalised patches."""

        def prepare_image_latents(self, images: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            """diffusers' method, which encodes each of the images."""
            seen = [*images[: len(images) - len(self.reference_latents)], *self.reference_latents]
            return super().prepare_image_latents(seen, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

        def _encode_vae_image(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            if image.shape[1] == self.transformer.config.in_channels:
                return image
            return super()._encode_vae_image(image, generator)  # pyright: ignore[reportAttributeAccessIssue]

    return TakesReferenceLatents


KLEIN = PipelineClass("Flux2KleinPipeline", (keeps_sampled, takes_reference_latents))


def in_template(tokenizer: Any, text: str) -> str:
    """``text`` as a message, before an answer without thoughts."""
    return qwen3.in_template(tokenizer, text, thinking=False)


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """The outputs of three layers of Qwen3, joined: (1, tokens, 3 * width).

    The same as ``Flux2KleinPipeline.encode_prompt``, which would run where the encoder's first weight is.
    """
    import torch

    found = pipe.tokenizer(in_template(pipe.tokenizer, text), padding="max_length", max_length=tokens, truncation=True)
    states = pipe.text_encoder(
        input_ids=torch.tensor([found.input_ids], device=device),
        attention_mask=torch.tensor([found.attention_mask], device=device),
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    return {"prompt_embeds": torch.stack([states[tap] for tap in TAPS], dim=2).flatten(2)}


def misfits(configs: Mapping[str, Config]) -> Iterator[tuple[str, int, int, str]]:
    """Compare the text encoder and the VAE with the transformer."""
    main = configs["transformer"]
    if "text_encoder" in configs:
        needed = main["joint_attention_dim"] // len(TAPS)
        yield "text_encoder", configs["text_encoder"]["hidden_size"], needed, "features"
    if "vae" in configs:
        yield "vae", configs["vae"]["latent_channels"], main["in_channels"] // PATCH**2, "latent channels"


# Facts about a model, from its files


def base_facts(side: int) -> ModelFacts:
    """The guided model, with the settings of its model card."""
    return ModelFacts(Defaults(side, side, 50, 4.0), Limits(negative_prompt=True), TOKENS, "draw-edit")


def distilled_facts(side: int) -> ModelFacts:
    """The distilled model, which ignores guidance."""
    limits = Limits(guidance_scale=GuidanceLimit(0.0, 1.0))
    return ModelFacts(Defaults(side, side, DISTILLED_STEPS, 0.0), limits, TOKENS, "draw-edit")


def folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts:
    """A diffusers folder."""
    side = sensible_side(read("vae/config.json").get("sample_size"))
    return distilled_facts(side) if read("model_index.json").get("is_distilled") else base_facts(side)


def refused(name: str) -> str | None:
    """A model with the same tensors that does something else, by its name."""
    return "model that keeps its reference images (KV)" if KV_NAME.search(name) else None


def distilled_steps(name: str) -> int | None:
    """The number of steps of a distilled model, by the name of its file; None for a base model."""
    return None if BASE_NAME.search(name) else DISTILLED_STEPS


def distilled(model: Model, steps: int) -> Model:
    """``model`` as a distilled model."""
    found = distilled_facts(model.defaults.width)
    return replace(model, defaults=found.defaults, limits=found.limits)


# LoRA files

OWN_LAYER = re.compile(
    r"single_stream_modulation|double_stream_modulation|to_qkv_mlp_proj|time_guidance_embed"
    r"|[._]ff(?:_context)?[._]linear_(?:in|out)|single_transformer_blocks[._]\d+[._]attn[._]to_out"
)
"""In the names of layers that FLUX.1 does not have."""
WIDTHS = (3072, 4096, 6144)
"""Of klein 4B, klein 9B and dev. FLUX.1 has the first."""
DOWN, UP = r"[._](?:lora_down|lora_A|lora[._]down)[._]", r"[._](?:lora_up|lora_B|lora[._]up)[._]"
OWN_SHAPES = (
    (re.compile(rf"single_blocks[._]\d+[._]linear1{UP}"), 0, [9 * width for width in WIDTHS]),
    (re.compile(rf"double_blocks[._]\d+[._]\w+_mlp[._]0{UP}"), 0, [6 * width for width in WIDTHS]),
    (re.compile(rf"single_blocks[._]\d+[._]linear2{DOWN}"), 1, [4 * width for width in WIDTHS]),
    (re.compile(rf"double_blocks[._]\d+[._]\w+_(?:attn[._](?:qkv|proj)|mlp[._]0){DOWN}"), 1, WIDTHS[1:]),
    (re.compile(rf"transformer_blocks[._]\d+[._]attn[._](?:to|add)_[a-z_.0]+{DOWN}"), 1, WIDTHS[1:]),
    (re.compile(rf"single_blocks[._]\d+[._]linear1{DOWN}"), 1, WIDTHS[1:]),
)
"""Names that FLUX.1 has too, an axis of the tensor, and its sizes in FLUX.2 alone."""


DEEP = re.compile(r"(?<!single[._])transformer_blocks[._](?:[89]|\d\d)[._]")
"""A block under diffusers' name that no FLUX.2 has, and other models of its width have."""


def detect_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA by layers that FLUX.1 does not have, and by the shapes of those that both have.

    What only changes the attention of klein 4B's double blocks fits FLUX.1 too, whose module says so.
    """
    named = any(OWN_LAYER.search(name) for name in header)
    if not named and any(DEEP.search(name) for name in header):
        return None
    return Detected("flux2", certain=True) if named or any(map(own_shape, header, header.values())) else None


def own_shape(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a LoRA has a shape that only FLUX.2 has."""
    return len(shape) == 2 and any(pattern.search(name) and shape[axis] in sizes for pattern, axis, sizes in OWN_SHAPES)


# Training

DOUBLE_VALUES, SINGLE_VALUES = 27.1, 22.0
"""Values that a block keeps for the backward pass, per token and per unit of its width."""


def compare(denoiser: Any, scheduler: Any, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict the velocity, like diffusers' examples/dreambooth/train_dreambooth_lora_flux2_klein.py."""
    import torch
    from diffusers import Flux2KleinPipeline

    noisy, times = noised(scheduler, batch)
    embeds = torch.cat([*batch.prompt["prompt_embeds"]])
    predicted = denoiser(
        hidden_states=Flux2KleinPipeline._pack_latents(noisy),
        timestep=times / 1000,
        guidance=None,
        encoder_hidden_states=embeds,
        txt_ids=Flux2KleinPipeline._prepare_text_ids(embeds).to(noisy.device),
        img_ids=Flux2KleinPipeline._prepare_latent_ids(noisy).to(noisy.device),
        return_dict=False,
    )[0]
    return predicted, Flux2KleinPipeline._pack_latents(batch.noise - batch.latents)


def kept_values(config: Config, side: int, tokens: int) -> float:
    """The formula was counted on the real architecture at full width, on torch's meta device."""
    width = config["attention_head_dim"] * config["num_attention_heads"]
    blocks = config["num_layers"] * DOUBLE_VALUES + config["num_single_layers"] * SINGLE_VALUES
    return (side * side / 256 + tokens) * width * blocks


def file_tensors(layers: Tensors) -> Tensors:
    """By BFL's names: ComfyUI knows no others of the single blocks."""
    return double_stream.lora_in_original_names(layers, DOUBLE, SINGLE)


# The family


def step_operations(parameters: int, width: int, height: int) -> float:
    """Operations of a step: most weights on every token, and attention."""
    tokens = width * height / 256 + TOKENS
    return parameters * (1.56 * tokens + 6.9e-5 * tokens**2)


def architectures() -> Mapping[str, Architecture]:
    """The published models."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    from .parts import architectures as parts

    def model(encoder: Callable[[], Any], **config: Any) -> Architecture:
        return {
            "text_encoder": lambda: qwen3.cut(encoder(), TAPS[-1]),
            "transformer": lambda: Flux2Transformer2DModel(guidance_embeds=False, **config),
            "vae": lambda: AutoencoderKLFlux2(**parts.VAE),
        }

    small = model(parts.qwen3_4b, num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680)
    large = model(parts.qwen3_8b, num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288)
    return {"flux2-klein-4b": small, "flux2-klein-base-4b": small, "flux2-klein-9b": large}


FAMILY = FamilySpec(
    name="flux2",
    title="FLUX.2",
    components={
        "text_encoder": Component(qwen3.first_layers(TAPS[-1])),
        "transformer": Component(TRANSFORMER),
        "vae": Component(VAE),
    },
    denoiser="transformer",
    costs=FamilyCosts(
        denoiser="transformer",
        sample_values=lambda width, height: (width * height / 256 + TOKENS) * BYTES_PER_TOKEN,
        step_operations=step_operations,
        compressible=frozenset({"transformer", "text_encoder"}),
        overflows_fp16=frozenset({"text_encoder"}),
        guides_at_once=False,
        encode_values=ENCODE_VALUES,
    ),
    pipelines={
        ("text-to-image", None): KLEIN,
        ("edit", None): KLEIN,
        ("inpaint", None): PipelineClass("Flux2KleinInpaintPipeline", (keeps_sampled, takes_normalised)),
    },
    encoding=Encoding(
        encode,
        width="joint_attention_dim",
        template=lambda tokenizer: in_template(tokenizer, ""),
        extras=frozenset({REFERENCE_LATENTS, REFERENCE_METHOD}),
    ),
    latent=LatentSpace(
        to_raw=lambda config, latents: latents,
        from_raw=lambda config, samples: samples,
        comfy_format="Flux2",
        channels=128,
        scale=16,
        patch=PATCH,
        to_vae=to_vae,
        from_vae=from_vae,
        unpack=unpack,
    ),
    folders={"Flux2KleinPipeline": folder},
    running_steps=running_steps,
    misfits=misfits,
    tokenizers=lambda tokens: {"tokenizer": qwen3.tokenizer()},
    scheduler=lambda configs: SCHEDULER,
    single_files=SingleFiles(
        preferred={
            "text_encoder": ("qwen_3_*", "qwen3*"),
            "vae": ("flux2*vae*", "flux*2*vae*"),
        },
        foreign={"text_encoder": qwen3.VL_FILES},
        examples={
            "transformer": "flux-2-klein-4b.safetensors",
            "text_encoder": "qwen_3_4b.safetensors",
            "vae": "flux2-vae.safetensors",
        },
        facts=lambda configs: base_facts(USUAL_SIDE),
        refused=refused,
        steps_of=distilled_steps,
        distilled=distilled,
    ),
    loras=Loras(
        detect_lora,
        original_names=lambda denoiser: double_stream.original_names(denoiser, OUTSIDE, DOUBLE, SINGLE),
        swapped=(OUTSIDE["final_layer.adaLN_modulation.1"],),
    ),
    training=TrainingFormula(
        architecture="flux-2-klein/lora",
        targets=(*PROJECTIONS, "attn.to_qkv_mlp_proj"),
        scheduler=training_scheduler,
        compare=compare,
        kept_values=kept_values,
        distilled_steps=DISTILLED_STEPS,
        file_tensors=file_tensors,
    ),
    edit_pixels=EDIT_PIXELS,
    edits_parts=True,
    references=REFERENCES,
    architectures=architectures,
)
