"""Tiny diffusers folders: the real classes of FLUX and SDXL with a few thousand seeded random values each.

Every folder loads with ``from_pretrained`` without a network, weighs less than 3 MB and makes a 128x128 image in
four steps in about a second on a CPU. The VAE has four levels, as the real ones do, so one latent pixel is 8x8.
Nothing here may import ComfyUI or the node pack: the folders are what a user would bring.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    MotionAdapter,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny_krea2 import write_krea2
from tests.tiny_qwen import write_qwen_image

TEXT_WIDTH = 32
"""Hidden size of every tiny text encoder."""
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """The 256 printable characters that byte-level BPE writes for the 256 bytes (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + index) for index in range(len(shifted))]


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows every byte and no merges: any text encodes, one token a letter."""
    letters = byte_alphabet()
    tokens = [*letters, *(letter + "</w>" for letter in letters), CLIP_START, CLIP_END]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer over the printable ASCII characters, without sentinels."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer with Qwen3's marks and chat template that knows every byte and no merges."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate([*byte_alphabet(), *marks])},
        merges=[],
        pad_token=marks[0],
        eos_token=marks[2],
        additional_special_tokens=marks[1:],
        model_max_length=4096,
    )
    made.add_tokens(["<think>", "</think>"])
    made.chat_template = (
        "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    return made


def clip_config(tokenizer: CLIPTokenizer, *, width: int = TEXT_WIDTH) -> CLIPTextConfig:
    """Two layers, four heads, 77 positions."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=37,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="gelu",
    )


def flux_scheduler(*, guidance_embeds: bool) -> FlowMatchEulerDiscreteScheduler:
    """As flux-dev's (shifted by the size of the image), or as flux-schnell's."""
    shift = 3.0 if guidance_embeds else 1.0
    return FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=guidance_embeds)


def sdxl_scheduler(*, lightning: bool) -> EulerDiscreteScheduler:
    """As SDXL's; SDXL-Lightning's timesteps count from the end."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="trailing" if lightning else "leading",
    )


def tiny_vae(
    latent_channels: int,
    *,
    scaling: float,
    shift: float | None,
    sample_size: int = 128,
    channels: tuple[int, ...] = (8, 8, 16, 16),
    groups: int = 4,
) -> AutoencoderKL:
    """A four-level VAE (8 pixels to a latent pixel), of about 70,000 parameters where nothing else is said."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=groups,
        sample_size=sample_size,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
        force_upcast=shift is None,
    )


def t5_config(tokenizer: T5Tokenizer, *, layers: int) -> T5Config:
    """A narrow T5, version 1.1."""
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=37,
        num_layers=layers,
        num_heads=4,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
    )


def write_flux(
    folder: Path,
    *,
    guidance_embeds: bool,
    seed: int = 0,
    blocks: int = 1,
    pipeline_class: type[FluxPipeline] | type[FluxFillPipeline] | type[FluxKontextPipeline] = FluxPipeline,
) -> Path:
    """Write a FluxPipeline: dev-like with ``guidance_embeds``, schnell-like (no shift in its schedule) without.

    ``blocks``: of each of the transformer's two kinds, and half of T5's. A Fill transformer reads, beside the latents,
    those of the masked image and the mask's 16x16 pixels.
    """
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16 + 16 + 256 if pipeline_class is FluxFillPipeline else 16,
        out_channels=16,
        num_layers=blocks,
        num_single_layers=blocks,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    pipeline = pipeline_class(
        scheduler=flux_scheduler(guidance_embeds=guidance_embeds),
        vae=tiny_vae(4, scaling=0.3611, shift=0.1159),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5_config(tokenizer_2, layers=2 * blocks)),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )
    return save(pipeline, folder)


def write_flux_fill(folder: Path) -> Path:
    """Write a FluxFillPipeline, as FLUX.1 Fill is one."""
    return write_flux(folder, guidance_embeds=True, seed=6, pipeline_class=FluxFillPipeline)


def write_flux_kontext(folder: Path) -> Path:
    """Write a FluxKontextPipeline, as FLUX.1 Kontext is one."""
    return write_flux(folder, guidance_embeds=True, seed=7, pipeline_class=FluxKontextPipeline)


def write_chroma(folder: Path, *, seed: int = 12) -> Path:
    """Write a ChromaPipeline."""
    torch.manual_seed(seed)
    tokenizer = t5_tokenizer()
    pipeline = ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False),
        vae=tiny_vae(4, scaling=0.3611, shift=0.1159),
        text_encoder=T5EncoderModel(t5_config(tokenizer, layers=2)),
        tokenizer=tokenizer,
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
    )
    return save(pipeline, folder)


def qwen3_config(tokenizer: Qwen2Tokenizer) -> Qwen3Config:
    """A narrow Qwen3 with two layers, of which the last is not read."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )


def write_z_image(folder: Path, *, seed: int = 13) -> Path:
    """Write a ZImagePipeline with the scheduler of the base model."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # zeros, which the class begins with, would hide a token that is not loaded
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0, use_dynamic_shifting=False),
        vae=tiny_vae(4, scaling=0.3611, shift=0.1159),
        text_encoder=Qwen3Model(qwen3_config(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return save(pipeline, folder)


def tiny_flux2_vae(
    latent_channels: int, *, channels: tuple[int, ...] = (8, 8, 16, 16), groups: int = 4, sample_size: int = 128
) -> AutoencoderKLFlux2:
    """FLUX.2's VAE with four levels, and with statistics of its latents that show when they are forgotten."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=groups,
        sample_size=sample_size,
    )
    assert vae.bn.running_mean is not None
    assert vae.bn.running_var is not None
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def write_flux2(folder: Path, *, distilled: bool, seed: int) -> Path:
    """Write a Flux2KleinPipeline, whose encoder has a layer more than is read, and a head."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    encoder = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_flux2_vae(4),
        text_encoder=Qwen3ForCausalLM(encoder),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        is_distilled=distilled,
    )
    return save(pipeline, folder)


def write_sdxl(folder: Path, *, lightning: bool, seed: int = 0, text_width: int = TEXT_WIDTH) -> Path:
    """Write a StableDiffusionXLPipeline; ``lightning`` only changes the scheduler, as it does for the real weights.

    ``text_width``: of each of the two text encoders.
    """
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = clip_tokenizer(), clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 8 + text_width,
        cross_attention_dim=2 * text_width,
        norm_num_groups=8,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(4, scaling=0.13025, shift=None),
        text_encoder=CLIPTextModel(clip_config(tokenizer, width=text_width)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer_2, width=text_width)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=sdxl_scheduler(lightning=lightning),
        add_watermarker=False,
    )
    return save(pipeline, folder)


SD15_CHANNELS, SD15_GROUPS = (16, 32), 8


def write_sd15(folder: Path, *, seed: int = 0) -> Path:
    """Write a StableDiffusionPipeline of version 1.5, without its safety checker."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=SD15_CHANNELS,
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=SD15_GROUPS,
    )
    pipeline = StableDiffusionPipeline(
        vae=tiny_vae(4, scaling=0.18215, shift=None),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=sdxl_scheduler(lightning=False),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    return save(pipeline, folder)


def tiny_motion_adapter(*, seed: int = 0, frames: int = 8) -> MotionAdapter:
    """A motion adapter for the tiny SDXL and the tiny 1.5 (their levels are as wide), for so many frames."""
    torch.manual_seed(seed)
    return MotionAdapter(
        block_out_channels=SD15_CHANNELS,
        motion_layers_per_block=1,
        motion_num_attention_heads=8,
        motion_norm_num_groups=SD15_GROUPS,
        motion_max_seq_length=frames,
    )


def save(pipeline: DiffusionPipeline, folder: Path) -> Path:
    """Write the pipeline in diffusers format; returns the folder."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "tiny-flux-schnell": lambda folder: write_flux(folder, guidance_embeds=False, seed=1),
    "tiny-flux-dev": lambda folder: write_flux(folder, guidance_embeds=True, seed=2),
    "tiny-sdxl-lightning": lambda folder: write_sdxl(folder, lightning=True, seed=3),
    "tiny-sdxl": lambda folder: write_sdxl(folder, lightning=False, seed=4),
    "tiny-flux-fill": write_flux_fill,
    "tiny-flux-kontext": write_flux_kontext,
    "tiny-chroma": write_chroma,
    "tiny-z-image": write_z_image,
    "tiny-flux2-klein": lambda folder: write_flux2(folder, distilled=True, seed=14),
    "tiny-flux2-klein-base": lambda folder: write_flux2(folder, distilled=False, seed=15),
    "tiny-qwen-image": write_qwen_image,
    "tiny-krea2": write_krea2,
    "tiny-sd15": lambda folder: write_sd15(folder, seed=5),
}
"""How each tiny model is written, by the name of its folder."""


def write_tiny_models(root: Path) -> dict[str, Path]:
    """Write every tiny model below ``root`` (ComfyUI's ``models/diffusers``); a folder that is complete is kept."""
    folders: dict[str, Path] = {}
    for name, write in WRITERS.items():
        folder = root / name
        if not (folder / "model_index.json").is_file():
            write(folder)
        folders[name] = folder
    return folders


if __name__ == "__main__":
    import sys

    for written in write_tiny_models(Path(sys.argv[1])).values():
        print(written)
