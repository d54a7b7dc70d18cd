"""The five parts of the starter pipeline, with fresh weights."""

from __future__ import annotations

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


def build_t5(vocabulary: int) -> T5EncoderModel:
    """Two layers, enough to tie a colour or a size to the noun after it."""
    return T5EncoderModel(
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
