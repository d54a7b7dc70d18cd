"""Chroma1: FLUX.1 schnell with fewer parameters, trained anew with classifier-free guidance.

It has no CLIP: one small network makes the modulation of every block from the timestep. Of a prompt it sees T5's
embeddings of the words and of one padding token; ``HidesPadding`` says what diffusers makes of that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog.limits import Defaults, Limits
from ..planning.records import FamilyCosts
from ..weights.stamps import Shapes
from .parts import double_stream, t5
from .parts.autoencoder import FLUX_LATENTS, FLUX_VAE_FILES, SD3_VAE_FILES, VAE, shifted_from_raw, shifted_to_raw
from .parts.double_stream import (
    BLOCKS,
    DIFFUSERS_KEY_NORM,
    DIFFUSERS_SINGLE,
    INPUTS,
    ORIGINAL_KEY_NORM,
    ORIGINAL_SINGLE,
    keeps_its_shape,
    mask_alone,
    running_steps,
    unpack,
)
from .parts.shapes import numbered, sensible_side
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
BYTES_PER_TOKEN = 54_000
"""Activations of a step per token and byte of the number format, as FLUX.1's. A token is 16x16 pixels, or of text."""
SCHEDULE: dict[str, Any] = {"shift": 3.0, "use_dynamic_shifting": False}
"""Settings of FlowMatchEulerDiscreteScheduler in the published folder of Chroma1-HD."""
APPROXIMATOR = "distilled_guidance_layer"
"""The network that makes the modulations; no other model has it."""
MARK = f"{APPROXIMATOR}.in_proj.weight"

# The transformer


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of ChromaTransformer2DModel."""
    hidden, channels = shapes[MARK]
    return {
        **double_stream.config(shapes),
        "approximator_num_channels": channels,
        "approximator_hidden_dim": hidden,
        "approximator_layers": numbered(shapes, rf"{APPROXIMATOR}\.layers\.(\d+)\."),
    }


def empty(config: Config, folder: Path | None) -> Any:
    """The transformer without weights."""
    from diffusers import ChromaTransformer2DModel

    made: Any = ChromaTransformer2DModel.from_config(ChromaTransformer2DModel.load_config(folder) if folder else config)
    if "guidance_embeds" not in made.config:
        made.register_to_config(guidance_embeds=False)  # ChromaInpaintPipeline reads it, which the class does not have
    return made


APPROXIMATOR_LAYER = re.compile(rf"{APPROXIMATOR}\.(?:(in_proj|out_proj)|layers\.(\d+)\.(in|out)_layer|norms\.(\d+))")


def outside(stem: str) -> str | None:
    """diffusers' name of a layer outside of the blocks; None for one without."""
    if stem in INPUTS:
        return INPUTS[stem]
    found = APPROXIMATOR_LAYER.fullmatch(stem)
    if found is None:
        return None
    if found[3] is None:
        return stem
    return f"{APPROXIMATOR}.layers.{found[2]}.linear_{1 if found[3] == 'in' else 2}"


def renamed_original(tensors: Tensors) -> Tensors:
    """Rename the authors' tensors to diffusers' names."""
    return double_stream.renamed_original(tensors, outside)


TRANSFORMER = Part(
    name="chroma-transformer",
    title="Chroma transformer",
    empty=empty,
    config=config,
    signatures=(
        *(
            Signature("original", ORIGINAL_KEY_NORM.format(kind), beside=(ORIGINAL_SINGLE, MARK))
            for kind in ("scale", "weight")
        ),
        Signature("diffusers", DIFFUSERS_KEY_NORM, beside=(DIFFUSERS_SINGLE, MARK)),
    ),
    renames={"original": renamed_original},
    blocks=BLOCKS,
)

# Pipelines


def hides_padding() -> type:
    """Mixin that hides the padding of a prompt from the denoiser, if the mask says so in booleans.

    diffusers 0.42.1 multiplies a mask of numbers, and attention adds it to its scores: the padding stays visible, with
    a score that is lower by one (huggingface/diffusers issue 13619). The model was trained with the padding hidden.
    """
    import torch

    class HidesPadding:
        def _prepare_attention_mask(
            self,
            batch_size: int,
            sequence_length: int,
            dtype: torch.dtype,
            attention_mask: torch.Tensor | None = None,
        ) -> torch.Tensor | None:
            """The mask of text and image tokens, (B, text + image), in booleans if ``attention_mask`` is."""
            if attention_mask is None or attention_mask.dtype != torch.bool:
                return super()._prepare_attention_mask(  # pyright: ignore[reportAttributeAccessIssue]
                    batch_size, sequence_length, dtype, attention_mask
                )
            seen = torch.ones(batch_size, sequence_length, dtype=torch.bool, device=attention_mask.device)
            return torch.cat([attention_mask, seen], dim=1)

    return HidesPadding


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """T5's embeddings, and which of them are of words or of the first padding token."""
    found = encode_like_diffusers(pipe, text, device, tokens)
    return {**found, "prompt_attention_mask": found["prompt_attention_mask"].bool()}


def encode_like_diffusers(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """The same with the mask in numbers, which leaves the padding visible."""
    embeds, _, mask, *_ = pipe.encode_prompt(
        text, device=device, do_classifier_free_guidance=False, max_sequence_length=tokens
    )
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask}


def misfits(configs: Mapping[str, Config]) -> Iterator[tuple[str, int, int, str]]:
    """Compare the text encoder and the VAE with the transformer."""
    main = configs["transformer"]
    if "text_encoder" in configs:
        yield "text_encoder", configs["text_encoder"]["d_model"], main["joint_attention_dim"], "features"
    if "vae" in configs:
        yield "vae", configs["vae"]["latent_channels"], main["out_channels"] // 4, "latent channels"


# Facts about a model, from its files


def facts(side: int) -> ModelFacts:
    """A model with guidance, with the settings of the example in Chroma1-HD's model card."""
    return ModelFacts(Defaults(side, side, 40, 3.0), Limits(negative_prompt=True), TOKENS)


def folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts:
    """A diffusers folder."""
    return facts(sensible_side(read("vae/config.json").get("sample_size")))


# LoRA files

OWN_NAME = re.compile(r"distilled[._]guidance")


def detect_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA that changes the approximator. Without it, the file looks like one for FLUX.1."""
    return Detected("chroma", certain=True) if any(OWN_NAME.search(name) for name in header) else None


def original_names(transformer: Any) -> dict[str, tuple[str, ...]]:
    """The authors' name of each layer, with diffusers' layers that it joins."""
    layers = {name for name, _ in transformer.named_modules()}
    own = {**INPUTS, **{f"{APPROXIMATOR}.{end}": f"{APPROXIMATOR}.{end}" for end in ("in_proj", "out_proj")}}
    for number in range(len(transformer.distilled_guidance_layer.layers)):
        for end in ("in_layer", "out_layer"):
            stem = f"{APPROXIMATOR}.layers.{number}.{end}"
            own[stem] = outside(stem) or stem
    found = double_stream.original_names(transformer, own)
    return {stem: targets for stem, targets in found.items() if layers.issuperset(targets)}


def step_operations(parameters: int, width: int, height: int) -> float:
    """Operations of a step: as many as FLUX.1's, whose blocks it has, with fewer parameters for modulation."""
    tokens = width * height / 256 + TOKENS
    return parameters * (1.45 * tokens + 7.9e-5 * tokens**2)


def architectures() -> Mapping[str, Architecture]:
    """The published model."""
    from diffusers import ChromaTransformer2DModel

    from .parts import architectures as parts

    return {
        "chroma1-hd": {
            "text_encoder": parts.t5_xxl,
            "transformer": ChromaTransformer2DModel,
            "vae": parts.flux_vae,
        }
    }


FAMILY = FamilySpec(
    name="chroma",
    title="Chroma",
    components={
        "text_encoder": Component(t5.T5),
        "transformer": Component(TRANSFORMER, {"guidance_embeds": False}),
        "vae": Component(VAE, FLUX_LATENTS),
    },
    denoiser="transformer",
    costs=FamilyCosts(
        denoiser="transformer",
        sample_values=lambda width, height: (width * height / 256 + TOKENS) * BYTES_PER_TOKEN,
        step_operations=step_operations,
        compressible=frozenset({"transformer", "text_encoder"}),
        overflows_fp16=frozenset({"text_encoder"}),  # T5 does (diffusers PR 9097)
        guides_at_once=False,
    ),
    pipelines={
        ("text-to-image", None): PipelineClass("ChromaPipeline", (keeps_its_shape, hides_padding)),
        ("image-to-image", None): PipelineClass("ChromaImg2ImgPipeline", (hides_padding,)),
        ("inpaint", None): PipelineClass("ChromaInpaintPipeline", (mask_alone, hides_padding)),
    },
    encoding=Encoding(encode, width="joint_attention_dim", like_diffusers=encode_like_diffusers),
    latent=LatentSpace(
        to_raw=shifted_to_raw, from_raw=shifted_from_raw, comfy_format="Flux", channels=16, unpack=unpack
    ),
    folders={"ChromaPipeline": folder},
    running_steps=running_steps,
    pipeline_options=lambda index: {"image_encoder": None, "feature_extractor": None},
    misfits=misfits,
    tokenizers=lambda tokens: {"tokenizer": t5.tokenizer(tokens)},
    scheduler=lambda configs: Scheduler("FlowMatchEulerDiscreteScheduler", SCHEDULE),
    single_files=SingleFiles(
        preferred={
            "text_encoder": t5.FILES,
            "vae": FLUX_VAE_FILES,
        },
        foreign={"vae": SD3_VAE_FILES},
        examples={
            "transformer": "Chroma1-HD.safetensors",
            "text_encoder": "t5xxl_fp16.safetensors",
            "vae": "ae.safetensors",
        },
        facts=lambda configs: facts(1024),
    ),
    loras=Loras(detect_lora, original_names=original_names),
    architectures=architectures,
)
