"""The five parts of the starter pipeline, with fresh weights."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

LATENT_CHANNELS = 16
TEXT_WIDTH = 256
PROMPT_TOKENS = 32
VAE_CHANNELS = (16, 32, 64, 128)


def build_vae() -> AutoencoderKL:
    """8x down, no attention: a 128x128 picture is 16x16 latents of sixteen channels."""
    return AutoencoderKL(
        block_out_channels=VAE_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        sample_size=256,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def build_transformer() -> FluxTransformer2DModel:
    """One double and four single blocks of width 256; eight heads of 32."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=LATENT_CHANNELS * 4,
        num_layers=1,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),
    )


_WORDS_AROUND = ((1,), (2,), (9,), (10,), range(1, 8), range(9, 16))
"""What the first T5 heads look at, as buckets of the relative bias: the word before, the one before that, the next two,
and whichever word before or after the content asks for."""
_PULL = 40.0  # Muon lets the content's part of a T5 logit, which nothing scales down, grow to about 30


@torch.no_grad()
def start_reading_order(t5: T5EncoderModel) -> None:
    """Make some heads look at the words around each word.

    FLUX gives text no positions: the order of words reaches the picture through T5's relative bias alone. That hardly
    moves from its small random start: without this the model reads a bag of words, and draws "a square above a circle"
    where "a circle above a square" was asked for.
    """
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # (buckets, heads)
    for head, buckets in enumerate(_WORDS_AROUND):
        bias[:, head] = 0
        bias[0, head] = _PULL / 2  # itself, where there is no such word
        bias[list(buckets), head] = _PULL


def build_t5(vocabulary: int) -> T5EncoderModel:
    """Two layers, enough to tie a colour or a size to the noun after it, and a thing to its place in a pair."""
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=384,
            num_layers=2,
            num_heads=8,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )
    start_reading_order(t5)
    return t5


def build_clip(vocabulary: int) -> CLIPTextModel:
    """One layer; its pooled state at the end-of-text token modulates every block."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=384,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_TOKENS,
            hidden_act="gelu",
            pad_token_id=0,
            bos_token_id=3,
            # An end-of-text id of 2 would switch CLIPTextModel to an older pooling rule (the highest id).
            eos_token_id=1,
        )
    )
