"""Z-Image: one stream of image and text tokens, with Qwen3 as its text encoder and FLUX.1's VAE.

Two models have the same tensors: the base model, which is guided, and Turbo, which is distilled for eight steps without
guidance. Only the scheduler's shift in a folder, or the name of a single file, tells them apart.
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
from .parts import qwen3
from .parts.autoencoder import FLUX_LATENTS, FLUX_VAE_FILES, SD3_VAE_FILES, VAE, shifted_from_raw, shifted_to_raw
from .parts.double_stream import pieces, running_steps
from .parts.flow_matching import noised, training_scheduler
from .parts.shapes import USUAL_SIDE, numbered, sensible_side
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
    TrainingBatch,
    TrainingFormula,
)

if TYPE_CHECKING:
    import torch


TOKENS = 512
TOKEN_GROUP = 32
"""A prompt is padded to a multiple of this in the transformer. The image's positions follow those of the prompt."""
USUAL_TOKENS = 128
"""Of a prompt, with its chat template. Unlike in FLUX.1, a short one is not padded to ``TOKENS``."""
BYTES_PER_TOKEN = 62_000
"""Activations of a step per token and byte of the number format. A token is 16x16 pixels, or of text."""
ENCODE_VALUES = 105_000_000
"""Activations of Qwen3 4B. The outputs of all its layers are kept to the end, though only one is used."""
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
BASE_SHIFT, TURBO_SHIFT = 6.0, 3.0
"""The scheduler's ``shift`` in the published folders."""
TURBO_STEPS = 8
TURBO_NAME = re.compile(r"turbo|(?<![a-z])zit(?![a-z])", re.IGNORECASE)
LUMINA_WIDTH = 2304
"""Of Lumina Image 2, whose layers have the same names."""

# The transformer

MODULATION = "layers.0.adaLN_modulation.0.weight"
"""Lumina Image 2 has it as the second of two modules."""
ORIGINAL_QKV = "layers.0.attention.qkv.weight"
DIFFUSERS_Q = "layers.0.attention.to_q.weight"
BLOCKS = BlockLists(("noise_refiner", "context_refiner", "layers"))
RENAMED = {
    "x_embedder": "all_x_embedder.2-1",
    "final_layer.linear": "all_final_layer.2-1.linear",
    "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
}
"""The authors' names outside of the blocks, with diffusers', which add the size of a patch."""
ATTENTION = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
    "attention.q_norm": ("attention.norm_q",),
    "attention.k_norm": ("attention.norm_k",),
}
"""The authors' names in a block, with those of diffusers' layers that each joins."""
BLOCK = re.compile(r"((?:noise_refiner|context_refiner|layers)\.\d+)\.(.+)")
OUTSIDE = ("cap_embedder.", "t_embedder.")
PAD_TOKENS = ("x_pad_token", "cap_pad_token")


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of ZImageTransformer2DModel. Of a head's rotary axes, a quarter encodes the position in the text,
    and the rest is split between row and column."""
    dim, text = shapes["cap_embedder.1.weight"]
    head = shapes["layers.0.attention.norm_q.weight"][0]
    return {
        "in_channels": shapes["all_x_embedder.2-1.weight"][1] // 4,
        "dim": dim,
        "n_layers": numbered(shapes, r"layers\.(\d+)\."),
        "n_refiner_layers": numbered(shapes, r"noise_refiner\.(\d+)\."),
        "n_heads": dim // head,
        "n_kv_heads": dim // head,
        "cap_feat_dim": text,
        "axes_dims": [head // 4, head * 3 // 8, head * 3 // 8],
        "axes_lens": [1536, 512, 512],
    }


def empty(config: Config, folder: Path | None) -> Any:
    """The transformer without weights."""
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel.from_config(ZImageTransformer2DModel.load_config(folder) if folder else config)


def renamed_original(tensors: Tensors) -> Tensors:
    """Rename the authors' tensors to diffusers' names. Fused projections are split into views, which the loader copies:
    on views, some kernels would round otherwise."""
    width = tensors["cap_embedder.1.weight"].shape[0]
    found: Tensors = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        block = BLOCK.fullmatch(stem)
        if block is not None:
            targets = ATTENTION.get(block[2], (block[2],))
            for target, piece in zip(targets, pieces(value, len(targets), width), strict=True):
                found[f"{block[1]}.{target}.{kind}"] = piece
        elif stem in RENAMED:
            found[f"{RENAMED[stem]}.{kind}"] = value
        elif name in PAD_TOKENS or name.startswith(OUTSIDE):
            found[name] = value
    return found


TRANSFORMER = Part(
    name="z-image-transformer",
    title="Z-Image transformer",
    empty=empty,
    config=config,
    signatures=(
        Signature("original", ORIGINAL_QKV, beside=(MODULATION, "cap_pad_token")),
        Signature("diffusers", DIFFUSERS_Q, beside=(MODULATION, "cap_pad_token")),
    ),
    renames={"original": renamed_original},
    blocks=BLOCKS,
)

# Pipelines


def takes_latents() -> type:
    """Mixin for pipelines that begin with an image: lets them begin with latents as well.

    diffusers 0.42.1 takes only latents of four channels for such, and would scale those of this family as pixels.
    """

    class TakesLatents:
        vae: Any
        _processor: Any

        @property
        def image_processor(self) -> Any:
            """diffusers' own, which knows how many channels the latents have."""
            return self._processor

        @image_processor.setter
        def image_processor(self, made: Any) -> None:
            made.register_to_config(vae_latent_channels=self.vae.config.latent_channels)
            self._processor = made

    return TakesLatents


def mask_alone() -> type:
    """Mixin that prepares the mask of an inpainting without encoding the masked image, which diffusers never uses."""
    import torch

    class MaskAlone:
        vae_scale_factor: int

        def prepare_mask_latents(
            self,
            mask: torch.Tensor,
            masked_image: torch.Tensor,
            batch_size: int,
            height: int,
            width: int,
            dtype: torch.dtype,
            device: torch.device,
            generator: torch.Generator,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """The same mask as diffusers': ``mask`` (B, 1, H, W) sampled per latent pixel."""
            cells = self.vae_scale_factor * 2
            size = (2 * (height // cells), 2 * (width // cells))
            mask = torch.nn.functional.interpolate(mask, size=size, mode="nearest").to(device=device, dtype=dtype)
            mask = mask.repeat(batch_size // len(mask), 1, 1, 1)
            return mask, mask

    return MaskAlone


NEVER_TRUNCATED = (("cfg_truncation", None),)
"""As the default of 1, without reading the timesteps back from the device."""


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """Qwen3's embeddings of the text in its chat template, (1, tokens, width), without padding.

    The same as ``ZImagePipeline.encode_prompt``, which selects them by a mask: the device would have to report how
    many there are.
    """
    import torch

    found = pipe.tokenizer(
        qwen3.in_template(pipe.tokenizer, text), padding="max_length", max_length=tokens, truncation=True
    )
    count = sum(found.attention_mask)
    begin = found.attention_mask.index(1)
    states = pipe.text_encoder(
        input_ids=torch.tensor([found.input_ids], device=device),
        attention_mask=torch.tensor([found.attention_mask], device=device).bool(),
        output_hidden_states=True,
    ).hidden_states[-2]
    return {"prompt_embeds": states[:, begin : begin + count].clone()}


def most_tokens(config: Config) -> int:
    """How long a prompt can be: its positions begin at 1, and the image's own comes after them."""
    return (config["axes_lens"][0] - 2) // TOKEN_GROUP * TOKEN_GROUP


def misfits(configs: Mapping[str, Config]) -> Iterator[tuple[str, int, int, str]]:
    """Compare the text encoder and the VAE with the transformer."""
    main = configs["transformer"]
    if "text_encoder" in configs:
        yield "text_encoder", configs["text_encoder"]["hidden_size"], main["cap_feat_dim"], "features"
    if "vae" in configs:
        yield "vae", configs["vae"]["latent_channels"], main["in_channels"], "latent channels"


# Facts about a model, from its files


def base_facts(side: int) -> ModelFacts:
    """The guided model. Its authors' example has ``guidance_scale=4``, which is 5 as others count."""
    return ModelFacts(Defaults(side, side, 50, 5.0), Limits(negative_prompt=True), TOKENS)


def turbo_facts(side: int) -> ModelFacts:
    """The distilled model."""
    return ModelFacts(Defaults(side, side, TURBO_STEPS, 0.0), Limits(guidance_scale=GuidanceLimit(0.0, 1.0)), TOKENS)


def folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts:
    """A diffusers folder."""
    side = sensible_side(read("vae/config.json").get("sample_size"))
    shift = read("scheduler/scheduler_config.json").get("shift", BASE_SHIFT)
    return turbo_facts(side) if shift < (BASE_SHIFT + TURBO_SHIFT) / 2 else base_facts(side)


def turbo_steps(name: str) -> int | None:
    """The number of steps of a Turbo model, by the name of its file; None for the base model."""
    return TURBO_STEPS if TURBO_NAME.search(name) else None


def turbo(model: Model, steps: int) -> Model:
    """``model`` as a Turbo model."""
    found = turbo_facts(model.defaults.width)
    return replace(
        model,
        defaults=found.defaults,
        limits=found.limits,
        scheduler=SchedulerChoice(SCHEDULER, {"shift": TURBO_SHIFT}),
    )


# LoRA files

OWN_LAYER = re.compile(
    r"(?:^|[._])(?:noise_refiner|context_refiner|layers)[._]\d+[._](?:attention|feed_forward|adaLN_modulation)[._]"
)


def detect_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA by its layers, and one of Lumina Image 2 by its width."""
    own = {name: shape for name, shape in header.items() if OWN_LAYER.search(name)}
    if not own:
        return None
    widths = {shape[1] for name, shape in own.items() if len(shape) == 2 and re.search(r"lora_(A|down)", name)}
    return Detected("lumina-2" if LUMINA_WIDTH in widths else "z-image", certain=True)


def original_names(transformer: Any) -> dict[str, tuple[str, ...]]:
    """The authors' name of each layer, with diffusers' layers that it joins."""
    found = {stem: (target,) for stem, target in RENAMED.items()}
    for blocks in BLOCKS.lists:
        for number in range(len(getattr(transformer, blocks))):
            for stem in ("attention.qkv", "attention.out"):
                start = f"{blocks}.{number}."
                found[start + stem] = tuple(start + target for target in ATTENTION[stem])
    return found


# ControlNets

NO_CONTROLS = "ControlNets of Z-Image are not supported; guide a FLUX.1, Qwen-Image or SDXL model instead"


def detect_control(header: Shapes) -> Detected | None:
    """Recognize a ControlNet for Z-Image, which is refused by its name."""
    found = any(name.startswith(("control_layers.", "control_all_x_embedder.")) for name in header)
    return Detected("z-image", NO_CONTROLS) if found else None


# Training

LAYER_VALUES = 38.1
"""Values that a layer keeps for the backward pass, per token and per unit of its width. One layer of each refiner, with
a part of the tokens each, keep as many together."""


def compare(denoiser: Any, scheduler: Any, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict the velocity, like diffusers' examples/dreambooth/train_dreambooth_lora_z_image.py.

    The transformer counts time from noise to image, so its output is negative.
    """
    import torch

    noisy, times = noised(scheduler, batch)
    predicted = denoiser(
        list(noisy.unsqueeze(2)),
        (1000 - times) / 1000,
        [embeds[0] for embeds in batch.prompt["prompt_embeds"]],
        return_dict=False,
    )[0]
    return -torch.stack(predicted).squeeze(2), batch.noise - batch.latents


def kept_values(config: Config, side: int, tokens: int) -> float:
    """The formula was counted on the real architecture at full width, on torch's meta device."""
    layers = config["n_layers"] + config["n_refiner_layers"]
    return (side * side / 256 + tokens) * config["dim"] * layers * LAYER_VALUES


def file_tensors(layers: Tensors) -> Tensors:
    """With the prefix under which ComfyUI also reads diffusers' names of this family (comfy/lora.py)."""
    return {f"diffusion_model.{name.removeprefix('transformer.')}": value for name, value in layers.items()}


# The family


def step_operations(parameters: int, width: int, height: int) -> float:
    """Operations of a step: nearly every weight on every token, and attention."""
    tokens = width * height / 256 + USUAL_TOKENS
    return parameters * (1.84 * tokens + 8e-5 * tokens**2)


def architectures() -> Mapping[str, Architecture]:
    """The published models."""
    from diffusers import ZImageTransformer2DModel

    from .parts import architectures as parts

    made: Architecture = {
        "text_encoder": parts.qwen3_4b,
        "transformer": ZImageTransformer2DModel,
        "vae": parts.flux_vae,
    }
    return {"z-image-turbo": made, "z-image": made}


FAMILY = FamilySpec(
    name="z-image",
    title="Z-Image",
    components={
        "text_encoder": Component(qwen3.QWEN3),
        "transformer": Component(TRANSFORMER),
        "vae": Component(VAE, FLUX_LATENTS),
    },
    denoiser="transformer",
    costs=FamilyCosts(
        denoiser="transformer",
        sample_values=lambda width, height: (width * height / 256 + TOKENS) * BYTES_PER_TOKEN,
        step_operations=step_operations,
        compressible=frozenset({"transformer", "text_encoder"}),
        overflows_fp16=frozenset({"transformer", "text_encoder"}),  # ComfyUI issue 10751
        encode_values=ENCODE_VALUES,
    ),
    pipelines={
        ("text-to-image", None): PipelineClass("ZImagePipeline", options=NEVER_TRUNCATED),
        ("image-to-image", None): PipelineClass("ZImageImg2ImgPipeline", (takes_latents,), NEVER_TRUNCATED),
        ("inpaint", None): PipelineClass("ZImageInpaintPipeline", (mask_alone, takes_latents), NEVER_TRUNCATED),
    },
    encoding=Encoding(
        encode,
        width="cap_feat_dim",
        most_tokens=most_tokens,
        listed=True,
        template=lambda tokenizer: qwen3.in_template(tokenizer, ""),
    ),
    guidance=lambda usual: max(usual - 1, 0.0),
    latent=LatentSpace(to_raw=shifted_to_raw, from_raw=shifted_from_raw, comfy_format="Flux", channels=16),
    folders={"ZImagePipeline": folder},
    running_steps=running_steps,
    misfits=misfits,
    tokenizers=lambda tokens: {"tokenizer": qwen3.tokenizer()},
    scheduler=lambda configs: Scheduler(SCHEDULER, {"shift": BASE_SHIFT, "use_dynamic_shifting": False}),
    single_files=SingleFiles(
        preferred={"text_encoder": ("qwen_3_4b*", "qwen3*4b*"), "vae": FLUX_VAE_FILES},
        foreign={"text_encoder": qwen3.VL_FILES, "vae": SD3_VAE_FILES},
        examples={
            "transformer": "z_image_turbo_bf16.safetensors",
            "text_encoder": "qwen_3_4b.safetensors",
            "vae": "ae.safetensors",
        },
        facts=lambda configs: base_facts(USUAL_SIDE),
        steps_of=turbo_steps,
        distilled=turbo,
    ),
    loras=Loras(detect_lora, original_names=original_names),
    detect_control=detect_control,
    control_folder=lambda config: config.get("_class_name") == "ZImageControlNetModel",
    control_problem=lambda config: NO_CONTROLS,
    training=TrainingFormula(
        architecture="z-image/lora",
        targets=("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        scheduler=training_scheduler,
        compare=compare,
        kept_values=kept_values,
        distilled_steps=TURBO_STEPS,
        file_tensors=file_tensors,
    ),
    architectures=architectures,
)
