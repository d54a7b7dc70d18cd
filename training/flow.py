"""The rectified-flow objective on packed latents, batches from the bank, and the optimizers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, T5EncoderModel

from training.block_transform import encode
from training.encode import as_batch, bank_dir, load_sprites, load_transform, random_scene, scene_of
from training.models import PROMPT_TOKENS, build_clip, build_t5, build_transformer
from training.scenes import SIDE, TOKEN, Scene, draw, vary_caption
from training.tokenizer import token_ids


@dataclass(frozen=True)
class TextIds:
    """Token ids of one batch for both encoders."""

    clip: torch.Tensor
    t5: torch.Tensor

    def to(self, device: str) -> TextIds:
        """The same ids on ``device``."""
        return TextIds(self.clip.to(device), self.t5.to(device))


@dataclass(frozen=True)
class Bank:
    """Cached latents (n, channels, h, w) float16 with the scene of each."""

    latents: np.ndarray
    scenes: list[Scene]


def load_bank(mixtures: str) -> Bank:
    """Every shard on disk of one mixture, or of several (``composed+placed``)."""
    latents: list[np.ndarray] = []
    scenes: list[Scene] = []
    for mixture in mixtures.split("+"):
        paths = sorted(bank_dir(mixture).glob("*-*[0-9].npy"))
        if not paths:
            command = f"python -m training.encode --mixture {mixture}"
            raise FileNotFoundError(f"{bank_dir(mixture)} is empty; run {command}")
        for path in paths:
            seed, first = (int(part) for part in path.stem.split("-"))
            shard = np.load(path)
            latents.append(shard)
            scenes += [scene_of(mixture, seed, first + offset)[0] for offset in range(len(shard))]
    return Bank(np.concatenate(latents), scenes)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(n, c, h, w) to FLUX's (n, h/2 * w/2, 4c)."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def token_grid(latents: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the tokens that ``latents`` (n, c, h, w) are packed into."""
    return latents.shape[2] // 2, latents.shape[3] // 2


def text_ids(captions: list[str], rng: np.random.Generator, length: int | None = None) -> TextIds:
    """Tokens of plain captions (known words only), T5's padded to ``length`` or a little over the longest."""
    ids = token_ids()
    rows = [[ids[word] for word in caption.split()][: PROMPT_TOKENS - 2] for caption in captions]
    longest = max(map(len, rows)) + 1
    if length is None:
        # Flux passes no mask to T5 or the transformer, so how many pads follow must not matter: vary it.
        length = max(-(-longest // 4) * 4, PROMPT_TOKENS if rng.random() < 0.12 else 16)
    clip = np.zeros((len(rows), PROMPT_TOKENS), dtype=np.int64)
    t5 = np.zeros((len(rows), max(length, longest)), dtype=np.int64)
    for number, row in enumerate(rows):
        clip[number, : len(row) + 2] = [3, *row, 1]
        t5[number, : len(row) + 1] = [*row, 1]
    return TextIds(torch.from_numpy(clip), torch.from_numpy(t5))


def draw_batch(
    bank: Bank, count: int, rng: np.random.Generator, length: int | None = None
) -> tuple[torch.Tensor, TextIds]:
    """``count`` latents of the bank with freshly worded captions."""
    chosen = rng.integers(len(bank.scenes), size=count)
    captions = [vary_caption(bank.scenes[index], rng) for index in chosen]
    return torch.from_numpy(bank.latents[chosen]).float(), text_ids(captions, rng, length)


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height from 128 to 256; half are squares. Three in four are multiples of 32, the others of 16."""
    unit = TOKEN if rng.random() < 0.25 else 2 * TOKEN
    width, height = (int(units) * unit for units in rng.integers(SIDE // unit, 2 * SIDE // unit + 1, 2))
    return (width, width) if rng.random() < 0.5 else (width, height)


class Sizes:
    """Batches of images of other sizes, composed as they are needed."""

    def __init__(self, mixture: str) -> None:
        """Scenes of the first of ``mixture``'s mixtures."""
        self._mixture = mixture.split("+")[0]
        self._sprites, self._transform = load_sprites(), load_transform()

    def draw_batch(self, tokens: int, rng: np.random.Generator) -> tuple[torch.Tensor, TextIds]:
        """About ``tokens`` image tokens of one random size, with their captions."""
        width, height = random_size(rng)
        count = max(2, round(tokens / (width * height / TOKEN**2)))
        scenes = [random_scene(self._mixture, rng) for _ in range(count)]
        drawn = as_batch([draw(scene, self._sprites, (width, height), rng) for scene in scenes])
        return encode(self._transform, drawn), text_ids([vary_caption(scene, rng) for scene in scenes], rng)


class Starter(nn.Module):
    """The trained parts together: both text encoders and the transformer."""

    def __init__(self) -> None:
        """Fresh weights. Block gates start open: with so few steps, adaLN-zero's slow opening costs too much."""
        super().__init__()
        vocabulary = len(token_ids())
        self.t5: T5EncoderModel = build_t5(vocabulary)
        self.clip: CLIPTextModel = build_clip(vocabulary)
        self.transformer: FluxTransformer2DModel = build_transformer()
        for name, module in self.transformer.named_modules():
            if name.endswith((".norm.linear", ".norm1.linear", ".norm1_context.linear")):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
                parts = module.bias.data.view(-1, self.transformer.inner_dim)
                parts[2::3] = 1.0  # (shift, scale, gate), once or twice
        nn.init.zeros_(self.transformer.proj_out.weight)

    @torch.no_grad()
    def set_word_codes(self, codes: torch.Tensor) -> None:
        """Start both embedding tables from ``codes`` (words, width)."""
        self.t5.shared.weight.copy_(codes)
        self.clip.get_input_embeddings().weight.copy_(codes)

    def forward(self, noisy: torch.Tensor, time: torch.Tensor, text: TextIds, grid: tuple[int, int]) -> torch.Tensor:
        """Velocity for packed latents ``noisy`` (n, tokens, 4c) at ``time`` (n,) in 0..1."""
        image_ids = FluxPipeline._prepare_latent_image_ids(1, grid[0], grid[1], noisy.device, torch.float32)
        # On a CPU the fused attention's backward pass takes twice the time of plain matrix products at this size.
        backends = [SDPBackend.MATH] if noisy.device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(backends):
            return self.transformer(
                hidden_states=noisy,
                timestep=time,
                pooled_projections=self.clip(text.clip).pooler_output,
                encoder_hidden_states=self.t5(text.t5)[0],
                txt_ids=torch.zeros(text.t5.shape[1], 3, device=noisy.device),
                img_ids=image_ids,
                return_dict=False,
            )[0]


class MiddleReader(nn.Module):
    """Reads from each image token, as it leaves the first block, where it is relative to the middle of the image.

    The heads that feel the edges (``models.write_edges``) hold that in full, but bent; to learn from images alone to
    straighten it takes a small model very long, and until it can, things break wherever the image is not 128x128.
    The loss here asks for it outright: as sine and cosine of the distance in rows and in columns, with four periods.
    It is a part of training alone. No weight of it is in the model that comes out.
    """

    PERIODS = (4, 8, 16, 32)  # tokens

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        """Watch the first block of ``transformer``."""
        super().__init__()
        self.linear = nn.Linear(transformer.inner_dim, 4 * len(self.PERIODS))
        self._tokens: torch.Tensor | None = None
        transformer.transformer_blocks[0].register_forward_hook(self._keep)

    def _keep(self, _block: nn.Module, _given: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._tokens = output[1]

    def loss(self, grid: tuple[int, int]) -> torch.Tensor:
        """Mean squared error for the last batch, of ``grid`` (rows, columns) tokens; 0.5 is to know nothing.

        Raises ``RuntimeError`` before the transformer has run.
        """
        if self._tokens is None:
            raise RuntimeError("the transformer has not run yet: there is nothing to read")
        device = self._tokens.device
        rows, columns = (torch.arange(side, device=device) - side // 2 for side in grid)
        places = torch.cartesian_prod(rows, columns)
        turns = places[:, :, None] / torch.tensor(self.PERIODS, device=device)
        angles = 2 * torch.pi * turns.flatten(1)
        truth = torch.cat([angles.sin(), angles.cos()], 1)
        read = self.linear(nn.functional.layer_norm(self._tokens, self._tokens.shape[-1:]))
        return nn.functional.mse_loss(read.float(), truth.expand_as(read))


def noise_levels(count: int, device: torch.device) -> torch.Tensor:
    """Four in five logit-normal and leaning to high noise, where words decide; the rest uniform."""
    normal = torch.sigmoid(torch.randn(count, device=device) + 0.8)
    uniform = torch.rand(count, device=device)
    return torch.where(torch.rand(count, device=device) < 0.2, uniform, normal).clamp(1e-3, 1 - 1e-4)


def flow_loss(model: nn.Module, latents: torch.Tensor, text: TextIds) -> torch.Tensor:
    """Mean squared error of the velocity noise - data."""
    data = pack(latents)
    noise = torch.randn_like(data)
    time = noise_levels(len(data), data.device)
    level = time[:, None, None]
    velocity = model((1 - level) * data + level * noise, time, text, token_grid(latents))
    return nn.functional.mse_loss(velocity.float(), noise - data)


def build_optimizers(model: Starter, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks and encoder layers, AdamW for embeddings, heads, norms and biases."""
    inner, outer = [], []
    for name, weight in model.named_parameters():
        in_block = ".transformer_blocks." in name or ".single_transformer_blocks." in name or "layer" in name
        (inner if weight.ndim == 2 and in_block and "relative" not in name else outer).append(weight)
    return [
        torch.optim.Muon(
            inner, lr=2 * rate, momentum=0.95, weight_decay=0.01, ns_steps=4, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
