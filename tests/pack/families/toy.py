"""A family that the pack does not know, in one file: AuraFlow, tiny and with random weights.

It differs from the pack's own in what a seam must bear: one text encoder of a class that no other family has, a mask
beside the embeddings, and blocks under a name of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from neurolux.catalog.limits import Defaults, Limits
from neurolux.families.blocks import BlockLists
from neurolux.families.parts.autoencoder import VAE, scaled_from_raw, scaled_to_raw
from neurolux.families.spec import Component, Encoding, FamilySpec, LatentSpace, ModelFacts, Part, PipelineClass
from neurolux.planning.records import FamilyCosts
from transformers import UMT5Config, UMT5EncoderModel

from tests.tiny_models import TEXT_WIDTH, save, t5_tokenizer, tiny_vae

TOKENS = 256


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """The embeddings, and which of them are padding."""
    embeds, mask, _, _ = pipe.encode_prompt(
        text, do_classifier_free_guidance=False, device=device, max_sequence_length=tokens
    )
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask}


TRANSFORMER = Part(
    name="toy-transformer",
    title="toy transformer",
    empty=lambda config, folder: AuraFlowTransformer2DModel.from_config(
        AuraFlowTransformer2DModel.load_config(folder) if folder else config
    ),
    config=lambda shapes: {},
    blocks=BlockLists(("joint_transformer_blocks", "single_transformer_blocks")),
)
ENCODER = Part(
    name="toy-encoder",
    title="toy encoder",
    empty=lambda config, folder: UMT5EncoderModel(UMT5Config.from_pretrained(folder)),
    config=lambda shapes: {},
    blocks=BlockLists(("encoder.block",)),
    tied={"encoder.embed_tokens.weight": "shared.weight"},
)
FAMILY = FamilySpec(
    name="toy",
    title="Toy",
    components={"text_encoder": Component(ENCODER), "transformer": Component(TRANSFORMER), "vae": Component(VAE)},
    denoiser="transformer",
    costs=FamilyCosts(
        denoiser="transformer",
        sample_values=lambda width, height: width * height * 100,
        step_operations=lambda parameters, width, height: 2.0 * parameters * width * height / 256,
        compressible=frozenset({"transformer"}),
    ),
    pipelines={("text-to-image", None): PipelineClass("AuraFlowPipeline")},
    encoding=Encoding(encode, width="joint_attention_dim"),
    latent=LatentSpace(to_raw=scaled_to_raw, from_raw=scaled_from_raw, comfy_format="SDXL", channels=4),
    folders={
        "AuraFlowPipeline": lambda read: ModelFacts(
            Defaults(128, 128, 3, 3.5), Limits(negative_prompt=True), max_sequence_length=TOKENS
        )
    },
    running_steps=lambda steps, strength: int(steps * strength),
)


def write_toy(folder: Path) -> Path:
    """Write a tiny AuraFlowPipeline."""
    torch.manual_seed(11)
    tokenizer = t5_tokenizer()
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=256,
    )
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
    )
    pipeline = AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(config),
        vae=tiny_vae(4, scaling=0.13025, shift=None),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    return save(pipeline, folder)
