"""The autoencoder's encoder, written down instead of trained: a linear transform of 8x8 blocks.

The sixteen latent channels are the leading principal components of 8x8 RGB blocks of the training images. They
fit exactly into the layers of ``AutoencoderKL``: strided convolutions gather the blocks, the residual branches are
silent, and two identities take the last group norm and SiLU out of the way. Constant channels far larger than the
signal pin the norm's variance, and ``silu(x) - silu(-x) == x``. So encoding needs no training, works for any
image, and the bank of latents is one matrix product. The decoder starts as an enlargement of the block means and
is trained from there.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from training.models import LATENT_CHANNELS, VAE_CHANNELS

BLOCK = 8
FLATTEN = 0.5  # latent spread is the component's own to this power: fine detail is lifted, but stays below colour
_PIN = 24.0  # constant channels, against a signal of about one
_DECODER_PIN = 2.0
_FIRST, _SECOND, _THIRD, _LAST = VAE_CHANNELS


def blocks(batch: torch.Tensor) -> torch.Tensor:
    """(n, 3, h, w) to (n, h/8, w/8, 192); within a block channel-major, then row, then column."""
    n, c, h, w = batch.shape
    cut = batch.view(n, c, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, h // BLOCK, w // BLOCK, c * BLOCK * BLOCK)


def fit(batch: torch.Tensor) -> torch.Tensor:
    """The transform (16, 192) from images (n, 3, h, w) on [-1, 1]; overall spread of the latents is one."""
    flat = blocks(batch).reshape(-1, 3 * BLOCK * BLOCK).double()
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    basis = vectors.flip(1)[:, :LATENT_CHANNELS].T
    spread = values.flip(0)[:LATENT_CHANNELS].sqrt()
    scaled = basis * (spread**FLATTEN / spread)[:, None]
    # One sign convention, so that the same data always give the same latents.
    scaled *= torch.where(scaled.sum(1) < 0, -1.0, 1.0)[:, None]
    return (scaled / (flat @ scaled.T).std()).float()


def encode(transform: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Latents (n, 16, h/8, w/8) of images (n, 3, h, w) on [-1, 1]."""
    return (blocks(batch) @ transform.T).permute(0, 3, 1, 2).contiguous()


def _silence(module: nn.Module) -> None:
    """Zero every residual branch and convolution bias, so that only shortcuts carry."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.zeros_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _identity(conv: nn.Conv2d, channels: int) -> None:
    centre = conv.kernel_size[0] // 2
    for channel in range(channels):
        conv.weight[channel, channel, centre, centre] = 1.0


def _gather(conv: nn.Conv2d, matrix: torch.Tensor) -> None:
    """Set a stride-2 convolution to ``matrix`` (out, 4 * in): the 2x2 block under it, (row, column) outermost."""
    out, width = matrix.shape[0], matrix.shape[1] // 4
    conv.weight[:out, :width, :2, :2] = matrix.view(out, 2, 2, width).permute(0, 3, 1, 2)


def _order_2x2(size: int) -> np.ndarray:
    """Positions of a block's entries (3, size, size) in the order nested 2x2 gathering leaves them."""
    grid = np.arange(3 * size * size).reshape(3, size, size)
    if size == 1:
        return grid[:, 0, 0]
    half = size // 2
    inner = _order_2x2(half)
    quarters = [grid[:, r : r + half, c : c + half].reshape(-1)[inner] for r in (0, half) for c in (0, half)]
    return np.concatenate(quarters)


@torch.no_grad()
def write_encoder(vae: AutoencoderKL, transform: torch.Tensor) -> None:
    """Put ``transform`` into the encoder of ``vae``."""
    encoder = vae.encoder
    _silence(encoder)
    rows = transform[:, torch.from_numpy(_order_2x2(BLOCK))].double()
    # A 4x4 block has 48 values but its layer fewer channels: keep the directions that the transform reads.
    quarters = rows.view(LATENT_CHANNELS, 4, 48).permute(1, 0, 2).reshape(-1, 48)
    kept = torch.linalg.svd(quarters, full_matrices=False)[2][:_SECOND]
    last = torch.einsum("okq,rq->okr", rows.view(LATENT_CHANNELS, 4, 48), kept).reshape(LATENT_CHANNELS, -1)

    _identity(encoder.conv_in, 3)
    downs = encoder.down_blocks
    _gather(downs[0].downsamplers[0].conv, torch.eye(12))
    _identity(downs[1].resnets[0].conv_shortcut, 12)
    _gather(downs[1].downsamplers[0].conv, kept.float())
    _identity(downs[2].resnets[0].conv_shortcut, _SECOND)
    _gather(downs[2].downsamplers[0].conv, last.float())

    signed = downs[3].resnets[0].conv_shortcut
    groups = vae.config.norm_num_groups
    width = _LAST // groups
    per_group = LATENT_CHANNELS // groups
    out = encoder.conv_out
    centre = 1
    for latent in range(LATENT_CHANNELS):
        group, slot = divmod(latent, per_group)
        plus = group * width + 2 * slot
        signed.weight[plus, latent] = 1.0
        signed.weight[plus + 1, latent] = -1.0
        pinned = width - 2 * per_group
        gain = (pinned * _PIN**2 / width) ** 0.5
        out.weight[latent, plus, centre, centre] = gain
        out.weight[latent, plus + 1, centre, centre] = -gain
    for channel in range(_LAST):
        if channel % width >= 2 * per_group:
            signed.bias[channel] = _PIN if channel % 2 else -_PIN
    out.bias[LATENT_CHANNELS:] = -12.0


@torch.no_grad()
def start_decoder(vae: AutoencoderKL, transform: torch.Tensor) -> None:
    """Start the decoder as a smooth enlargement of the block means; every residual branch begins silent."""
    decoder = vae.decoder
    inverse = torch.linalg.pinv(transform.double())
    means = inverse.view(3, BLOCK * BLOCK, LATENT_CHANNELS).mean(1).float()
    for part in decoder.modules():
        if hasattr(part, "conv2"):
            nn.init.zeros_(part.conv2.weight)
            nn.init.zeros_(part.conv2.bias)
    carriers = [(0, 1), (2, 3), (8, 9)]  # plus and minus of red, green, blue: two norm groups of the last eight + eight
    pins = [4, 5, 6, 7, 10, 11]
    reserved = [*(channel for pair in carriers for channel in pair), *pins]
    decoder.conv_in.weight[reserved] = 0
    decoder.conv_in.bias[reserved] = 0
    for colour, (plus, minus) in enumerate(carriers):
        decoder.conv_in.weight[plus, :, 1, 1] = means[colour]
        decoder.conv_in.weight[minus, :, 1, 1] = -means[colour]
    kernel = torch.tensor([0.25, 0.5, 0.25])
    for block in decoder.up_blocks:
        convs = [sampler.conv for sampler in block.upsamplers or ()]
        convs += [net.conv_shortcut for net in block.resnets if net.conv_shortcut is not None]
        for conv in convs:
            conv.weight[reserved] = 0
            conv.bias[reserved] = 0
            smooth = torch.outer(kernel, kernel) if conv.kernel_size[0] == 3 else torch.ones(1, 1)
            for channel in (channel for pair in carriers for channel in pair):
                conv.weight[channel, channel] = smooth
            for channel in pins:
                conv.bias[channel] = _DECODER_PIN if channel % 2 else -_DECODER_PIN
    out = decoder.conv_out
    out.weight *= 0.1
    nn.init.zeros_(out.bias)
    for colour, (plus, minus) in enumerate(carriers):
        gain = _DECODER_PIN * (0.8 if plus < _FIRST // 2 else 0.6)
        out.weight[colour, [plus, minus]] = 0
        out.weight[colour, plus, 1, 1] = gain
        out.weight[colour, minus, 1, 1] = -gain
