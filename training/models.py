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
    """8x down, no attention: a 128x128 image is 16x16 latents of sixteen channels."""
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


_ROTARY_AXES = (4, 14, 14)  # of 32: nothing, row, column
_EDGE_HEADS = {0: (1, 1.0), 4: (1, -1.0), 6: (2, 1.0), 7: (2, -1.0)}
"""Head: the axis along which it looks (1 row, 2 column), and 1 for towards the first row or column, -1 for the last."""


@torch.no_grad()
def write_edges(transformer: FluxTransformer2DModel) -> None:
    """Make four heads of the first block tell each image token how far it is from the four edges.

    They are written, not trained: each step of the training writes them again.

    FLUX counts rows and columns from the top left and does not know how many there are. So a thing in the middle stands
    at another row and column in each size, and a small model takes very long to find its middle: one trained without
    this knew a token's distance from it to two tokens. Here each token weighs the image tokens on one side of it
    against the text tokens, with a weight that grows by a fifth for each row or column; the outcome is one number a
    head. The numbers of opposite heads differ by the token's distance from the middle.
    """
    block = transformer.transformer_blocks[0]
    attention, width = block.attn, sum(_ROTARY_AXES)
    for head, (axis, sign) in _EDGE_HEADS.items():
        turning = sum(_ROTARY_AXES[:axis]) + 4  # the pair that turns by 0.072 a row or column
        query, image_key, text_key = torch.zeros(3, width)
        query[[1, turning]] = 4.0  # the first axis does not turn: a plain weight for image or text
        image_key[[1, turning + 1]] = torch.tensor([-1.0, sign * 4.0])
        text_key[1] = 1.45
        image_key[0], text_key[0] = 3.87, 5.47  # no query looks here: keys of equal length
        rows = slice(head * width, (head + 1) * width)
        for layer, norm, vector in (
            (attention.to_q, attention.norm_q, query),
            (attention.to_k, attention.norm_k, image_key),
            (attention.add_k_proj, attention.norm_added_k, text_key),
        ):
            layer.weight[rows] = 0
            layer.bias[rows] = vector / norm.weight
        for layer, sign in ((attention.to_v, -1.0), (attention.add_v_proj, 1.0)):
            layer.weight[rows.start] = 0
            layer.bias[rows.start] = sign


def build_transformer() -> FluxTransformer2DModel:
    """One double and four single blocks of width 256; eight heads of 32."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=LATENT_CHANNELS * 4,
        num_layers=1,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=_ROTARY_AXES,
    )
    write_edges(transformer)
    return transformer


_WORDS_AROUND = ((1,), (2,), (9,), (10,), range(1, 8), range(9, 16))
"""What the first T5 heads look at, as buckets of the relative bias: the word before, the one before that, the next two,
and whichever word before or after the content asks for."""
_PULL = 40.0  # Muon lets the content's part of a T5 logit, which nothing scales down, grow to about 30


@torch.no_grad()
def start_reading_order(t5: T5EncoderModel) -> None:
    """Make some heads look at the words around each word.

    FLUX gives text no positions: the order of words reaches the image through T5's relative bias alone. That hardly
    moves from its small random start: without this the model reads a bag of words, and makes "a square above a circle"
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
