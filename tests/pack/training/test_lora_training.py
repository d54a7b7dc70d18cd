"""Training a LoRA on tiny weights, in this process: as a plain diffusers and peft loop would, and the base unharmed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from neurolux.families.sdxl import PUBLISHED_UNET
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.pack.blocks import shallow_flux, shallow_klein, shallow_qwen_image, shallow_z_image
from tests.pack.pipelines import borrow, handle_for

if TYPE_CHECKING:
    from neurolux.families.spec import TrainingFormula
    from neurolux.loading.handle import PipelineHandle
    from neurolux.training.lora import TrainedLora

pytestmark = pytest.mark.usefixtures("unloaded")
SIDE, RANK, RATE, BATCH, SEED = 64, 4, 1e-3, 2, 7


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three random images, each with a caption."""
    path = tmp_path_factory.mktemp("training") / "set.zip"
    noise = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(3):
            data = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(data, "png")
            packed.writestr(f"{number}.png", data.getvalue())
            packed.writestr(f"{number}.txt", f"image {number}")
    return path


def train(
    handle: PipelineHandle,
    archive: Path,
    folder: Path,
    steps: int,
    *,
    stop_at: int = 0,
    resume: bool = False,
    **more: Any,
) -> TrainedLora:
    """Train as the node does; ``stop_at``: an interrupt behind that step."""
    from comfy.model_management import InterruptProcessingException
    from neurolux.training.image_set import read_training_set
    from neurolux.training.lora import TrainingReporter, train_lora
    from neurolux.training.settings import LoraSettings

    class Reporter(TrainingReporter):
        def step(self, losses: Sequence[float]) -> None:
            if len(losses) == stop_at:
                raise InterruptProcessingException

    values = {
        "rank": RANK,
        "learning_rate": RATE,
        "batch": BATCH,
        "side": SIDE,
        "seed": SEED,
        "trigger": "zorb",
        **more,
    }
    settings = LoraSettings("tiny", steps, **values)
    with torch.inference_mode():  # as ComfyUI runs nodes
        return train_lora(
            handle, read_training_set("set.zip", archive), settings, resume=resume, loras=folder / "loras",
            checkpoints=folder / "checkpoints", progress=Reporter(),
        )  # fmt: skip


def make_image(handle: PipelineHandle) -> torch.Tensor:
    from neurolux.training.lora import TrainingReporter
    from neurolux.training.samples import sample_images

    with torch.inference_mode():
        return sample_images(handle, "zorb", 3, 1, 128, TrainingReporter())


def latents_of(handle: PipelineHandle, archive: Path) -> torch.Tensor:
    """The images as they are trained on, (3, C, h, w)."""
    from neurolux.training.examples import make_examples
    from neurolux.training.image_set import read_training_set

    with torch.no_grad():
        found, warnings = make_examples(
            borrow(handle), read_training_set("set.zip", archive), "zorb", SIDE, lambda _: None
        )
    assert warnings == []
    return torch.cat([example.latent for example in found])


class PlainLoop:
    """The same training with nothing of ours but the order of what is drawn."""

    part = "transformer"

    def __init__(self, folder: Path, archive: Path) -> None:
        self.pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
        self.denoiser = getattr(self.pipe, self.part)
        for component in self.pipe.components.values():
            if isinstance(component, torch.nn.Module):
                for weight in component.parameters():  # mapped ones lie at any address, and products round by that
                    weight.data = weight.data.clone()
        with zipfile.ZipFile(archive) as packed, torch.no_grad():
            images = [Image.open(io.BytesIO(packed.read(f"{number}.png"))) for number in range(3)]
            pixels = self.pipe.image_processor.preprocess(images)
            self.latents = torch.cat([self.encode(one[None]) for one in pixels])
            self.texts = [self.describe(f"zorb, image {number}") for number in range(3)]

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.pipe.vae
        found = vae.encode(pixels).latent_dist.mode()
        return (found - (vae.config.shift_factor or 0)) * vae.config.scaling_factor

    def describe(self, prompt: str) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError

    def run(self, steps: int, targets: list[str]) -> dict[str, torch.Tensor]:
        from neurolux.training.settings import LoraSettings

        settings = LoraSettings("", steps, RANK, RATE, BATCH, SIDE, SEED, "zorb")
        torch.manual_seed(SEED)
        self.denoiser.requires_grad_(False)
        config = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets)
        self.denoiser.add_adapter(config, "plain")
        weights = {name: weight for name, weight in self.denoiser.named_parameters() if weight.requires_grad}
        optimizer = torch.optim.AdamW(weights.values(), RATE, weight_decay=1e-4)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            generator = torch.Generator().manual_seed(settings.noise_seed(step))
            places = settings.picks(step, 3)
            latents = self.latents[places]
            noise = torch.randn(latents.shape, generator=generator)
            texts = [torch.cat(parts) for parts in zip(*(self.texts[place] for place in places), strict=True)]
            with sdpa_kernel([SDPBackend.MATH]):  # as ours on a CPU
                self.loss(latents, noise, texts, generator).backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return {f"{self.part}.{name.replace('.plain.', '.')}": weight.detach() for name, weight in weights.items()}

    def loss(self, latents: Any, noise: Any, texts: list[Any], generator: torch.Generator) -> torch.Tensor:
        raise NotImplementedError

    def noised(self, latents: Any, noise: Any, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Of flow matching: noisy latents and their times."""
        schedule = diffusers.FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)
        density = compute_density_for_timestep_sampling("logit_normal", BATCH, 0.0, 1.0, generator=generator)
        places = (density * 1000).long()
        level = schedule.sigmas[places].view(-1, 1, 1, 1)
        return (1 - level) * latents + level * noise, schedule.timesteps[places]


class PlainFlux(PlainLoop):
    def describe(self, prompt: str) -> tuple[torch.Tensor, ...]:
        return self.pipe.encode_prompt(prompt, None, max_sequence_length=512)[:2]

    def loss(self, latents: Any, noise: Any, texts: list[Any], generator: torch.Generator) -> torch.Tensor:
        noisy, times = self.noised(latents, noise, generator)
        count, channels, height, width = latents.shape
        said = self.denoiser(
            hidden_states=self.pipe._pack_latents(noisy, count, channels, height, width),
            timestep=times / 1000,
            guidance=torch.ones(BATCH) if self.denoiser.config.guidance_embeds else None,
            pooled_projections=texts[1],
            encoder_hidden_states=texts[0],
            txt_ids=torch.zeros(texts[0].shape[1], 3),
            img_ids=self.pipe._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", torch.float32),
        ).sample
        target = self.pipe._pack_latents(noise - latents, count, channels, height, width)
        return ((said - target) ** 2).flatten(1).mean(1).mean()


class PlainSdxl(PlainLoop):
    part = "unet"

    def describe(self, prompt: str) -> tuple[torch.Tensor, ...]:
        embeds, _, pooled, _ = self.pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        return embeds, pooled

    def loss(self, latents: Any, noise: Any, texts: list[Any], generator: torch.Generator) -> torch.Tensor:
        schedule = diffusers.DDPMScheduler.from_config(self.pipe.scheduler.config)
        times = torch.randint(0, 1000, (BATCH,), generator=generator)
        sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * BATCH, dtype=torch.float32)
        more = {"text_embeds": texts[1], "time_ids": sizes}
        noisy = schedule.add_noise(latents, noise, times)
        said = self.denoiser(noisy, times, encoder_hidden_states=texts[0], added_cond_kwargs=more).sample
        return ((said - noise) ** 2).flatten(1).mean(1).mean()


class PlainZImage(PlainLoop):
    def describe(self, prompt: str) -> tuple[torch.Tensor, ...]:
        embeds, _ = self.pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        return (embeds[0][None],)

    def loss(self, latents: Any, noise: Any, texts: list[Any], generator: torch.Generator) -> torch.Tensor:
        noisy, times = self.noised(latents, noise, generator)
        said = self.denoiser(list(noisy[:, :, None]), (1000 - times) / 1000, list(texts[0])).sample
        return ((noise - latents + torch.stack(said)[:, :, 0]) ** 2).flatten(1).mean(1).mean()


class PlainQwenImage(PlainLoop):
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.pipe.vae
        mean, deviation = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0] - mean) / deviation

    def describe(self, prompt: str) -> tuple[torch.Tensor, ...]:
        embeds, mask = self.pipe.encode_prompt(prompt)
        assert mask is None
        return (embeds,)

    def loss(self, latents: Any, noise: Any, texts: list[Any], generator: torch.Generator) -> torch.Tensor:
        noisy, times = self.noised(latents, noise, generator)
        count, channels, height, width = latents.shape
        said = self.denoiser(
            hidden_states=self.pipe._pack_latents(noisy, count, channels, height, width),
            timestep=times / 1000,
            encoder_hidden_states=texts[0],
            img_shapes=[[(1, height // 2, width // 2)]] * count,
        ).sample
        target = self.pipe._pack_latents(noise - latents, count, channels, height, width)
        return ((said - target) ** 2).flatten(1).mean(1).mean()


class PlainKlein(PlainLoop):
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.pipe.vae
        patches = self.pipe._patchify_latents(vae.encode(pixels).latent_dist.mode())
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        return (patches - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation

    def describe(self, prompt: str) -> tuple[torch.Tensor, ...]:
        return self.pipe.encode_prompt(prompt)

    def loss(self, latents: Any, noise: Any, texts: list[Any], generator: torch.Generator) -> torch.Tensor:
        noisy, times = self.noised(latents, noise, generator)
        said = self.denoiser(
            hidden_states=self.pipe._pack_latents(noisy),
            timestep=times / 1000,
            encoder_hidden_states=texts[0],
            txt_ids=texts[1],
            img_ids=self.pipe._prepare_latent_ids(latents),
        ).sample
        return ((said - self.pipe._pack_latents(noise - latents)) ** 2).flatten(1).mean(1).mean()


PLAIN: dict[str, type[PlainLoop]] = {
    "tiny-flux-dev": PlainFlux,
    "tiny-sdxl": PlainSdxl,
    "tiny-z-image": PlainZImage,
    "tiny-qwen-image": PlainQwenImage,
    "tiny-flux2-klein-base": PlainKlein,
}
UNREAD = {f"transformer.transformer_blocks.1.attn.{name}.lora_B.weight" for name in ("add_q_proj", "to_add_out")}
"""Qwen-Image reads nothing of the text after its last block, so these learn nothing."""


def formula_for(handle: PipelineHandle) -> TrainingFormula:
    from neurolux.training.settings import formula_of

    return formula_of(handle.model)


@pytest.mark.parametrize("model", PLAIN)
def test_weights_are_those_of_a_plain_loop_and_the_base_is_unharmed(
    model: str, tiny_models: dict[str, Path], archive: Path, tmp_path: Path
) -> None:
    from neurolux.training.samples import with_trained

    handle = handle_for(tiny_models[model])
    before = make_image(handle)
    trained = train(handle, archive, tmp_path, 3)
    assert torch.equal(make_image(handle), before)
    found = load_file(trained.path)
    formula = formula_for(handle)
    plain = PLAIN[model](tiny_models[model], archive)
    latents = latents_of(handle, archive)
    torch.testing.assert_close(latents, plain.latents, rtol=1e-5, atol=2e-6)  # convolutions round by the memory's order
    plain.latents = latents
    expected = plain.run(3, list(formula.targets))
    expected = formula.file_tensors(expected)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name
        assert weight.any() or name in UNREAD, name
    assert not torch.equal(make_image(with_trained(handle, trained.path)), before)
    assert torch.equal(make_image(handle), before)


@pytest.mark.parametrize(("model", "precision"), [("tiny-flux-dev", "auto"), ("tiny-sdxl", "fp16")])
def test_an_interrupted_training_goes_on_to_the_same_bytes(
    model: str, precision: str, tiny_models: dict[str, Path], archive: Path, tmp_path: Path
) -> None:
    from comfy.model_management import InterruptProcessingException
    from neurolux.errors import InvalidParameter

    handle = handle_for(tiny_models[model], precision=precision)
    unbroken = train(handle, archive, tmp_path, 5)
    again = train(handle, archive, tmp_path, 5)
    with pytest.raises(InterruptProcessingException):
        train(handle, archive, tmp_path, 5, stop_at=2)
    with pytest.raises(InvalidParameter, match="rank was 4 and is 8"):
        train(handle, archive, tmp_path, 5, resume=True, rank=8)
    with pytest.raises(InvalidParameter, match="has 2 steps already, and 1 are asked for"):
        train(handle, archive, tmp_path, 1, resume=True)
    resumed = train(handle, archive, tmp_path, 5, resume=True)
    files = [trained.path for trained in (unbroken, again, resumed)]
    assert [file.name for file in files] == ["tiny.safetensors", "tiny-2.safetensors", "tiny-3.safetensors"]
    assert len({file.read_bytes() for file in files}) == 1
    assert resumed.losses == unbroken.losses
    assert not [file for file in (tmp_path / "loras").iterdir() if file not in files], "nothing half-written stays"


@pytest.mark.parametrize(
    ("model", "precision"),
    [("tiny-flux-dev", "int8"), ("tiny-flux-dev", "nf4"), ("tiny-z-image", "int8"), ("tiny-qwen-image", "int8")],
)
def test_a_base_in_fewer_bits_is_trained_through(
    model: str, precision: str, tiny_models: dict[str, Path], archive: Path, tmp_path: Path
) -> None:
    """Its numbers are near those of the whole base, and the loss of the same steps too."""
    folder = tiny_models[model]
    whole = train(handle_for(folder), archive, tmp_path / "whole", 3)
    fewer = train(handle_for(folder, precision=precision), archive, tmp_path / precision, 3)
    assert fewer.losses == pytest.approx(whole.losses, rel=0.02)
    assert fewer.losses != whole.losses
    similar = [
        torch.nn.functional.cosine_similarity(weight.flatten(), other.flatten(), dim=0).item()
        for weight, other in zip(load_file(whole.path).values(), load_file(fewer.path).values(), strict=True)
    ]
    assert float(np.mean(similar)) > 0.9


@pytest.mark.parametrize("model", ["tiny-z-image", "tiny-qwen-image", "tiny-flux2-klein-base"])
def test_the_loss_falls_and_the_image_changes(
    model: str, tiny_models: dict[str, Path], archive: Path, tmp_path: Path
) -> None:
    """Compared with the same steps at a rate of nearly nothing: chance draws the same times and noise for both."""
    from neurolux.training.samples import with_trained

    handle = handle_for(tiny_models[model])
    before = make_image(handle)
    learned = train(handle, archive, tmp_path, 24, learning_rate=2e-2)
    idle = train(handle, archive, tmp_path / "idle", 24, learning_rate=1e-12)
    assert sum(learned.losses[-8:]) < 0.99 * sum(idle.losses[-8:])
    assert (make_image(with_trained(handle, learned.path)) - before).abs().mean() > 0.01


@pytest.mark.parametrize("model", ["tiny-z-image", "tiny-qwen-image"])
def test_captions_of_different_lengths_share_a_batch(model: str, tiny_models: dict[str, Path]) -> None:
    """What the other images of a batch are called does not change the error of an image."""
    from neurolux.families.spec import TrainingBatch
    from neurolux.stages.prompts.encode import encode, named_tensors

    handle = handle_for(tiny_models[model])
    loaded, formula = borrow(handle), formula_for(handle)
    brief, long = (named_tensors(loaded, encode(loaded, text), "caption") for text in ("zorb", "a zorb " * 9))
    shape = (2, loaded.denoiser.config.in_channels // (4 if "qwen" in model else 1), 8, 8)

    def errors(*captions: dict[str, torch.Tensor]) -> torch.Tensor:
        chance = torch.Generator().manual_seed(SEED)
        batch = TrainingBatch(
            latents=torch.randn(shape, generator=chance),
            noise=torch.randn(shape, generator=chance),
            prompt={name: [caption[name] for caption in captions] for name in brief},
            originals=[(SIDE, SIDE)] * 2, crops=[(0, 0)] * 2, side=SIDE, generator=chance,
        )  # fmt: skip
        with torch.no_grad():
            predicted, target = formula.compare(loaded.denoiser, formula.scheduler(loaded.pipe.scheduler.config), batch)
        return ((predicted - target) ** 2).flatten(1).mean(1)

    alone, mixed = errors(brief, brief), errors(brief, long)
    torch.testing.assert_close(mixed[0], alone[0])
    assert not torch.isclose(mixed[1], alone[1])


@pytest.mark.parametrize(
    ("model", "steps", "warned"),
    [
        ("tiny-z-image", 8, True), ("tiny-z-image", 50, False), ("tiny-qwen-image", 4, True),
        ("tiny-flux-dev", 8, False), ("tiny-flux2-klein", 4, True), ("tiny-flux2-klein-base", 50, False),
    ],
)  # fmt: skip
def test_a_distilled_model_is_told_of(model: str, steps: int, warned: bool, tiny_models: dict[str, Path]) -> None:
    from neurolux.training.lora import model_warnings

    loaded = borrow(handle_for(tiny_models[model]))
    defaults = replace(loaded.model.defaults, num_inference_steps=steps)
    found = model_warnings(replace(loaded, model=replace(loaded.model, defaults=defaults)))
    assert ["was distilled" in warning for warning in found] == [True] * warned


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("flux-schnell", "flux-dev"), ("sdxl-lightning", "sdxl-base"), ("sdxl-turbo", "sdxl-base"),
        ("z-image-turbo", "z-image"), ("flux2-klein-4b", "flux2-klein-base-4b"), ("flux2-klein-9b", None),
    ],
)  # fmt: skip
def test_a_better_base_of_the_same_size_is_named(model: str, base: str | None) -> None:
    from neurolux.families.registry import family_of
    from neurolux.library.known_models import shipped_catalog
    from neurolux.training.lora import undistilled

    distilled = shipped_catalog().models[model]
    found = undistilled(distilled, len(distilled.components[family_of(distilled.family).denoiser].blocks))
    assert (found and found.name) == base


@pytest.mark.parametrize("model", ["tiny-z-image", "tiny-qwen-image", "tiny-flux2-klein-base"])
def test_diffusers_reads_the_whole_file(
    model: str, tiny_models: dict[str, Path], archive: Path, tmp_path: Path
) -> None:
    """Its own loader changes every layer by as much as the training did."""
    trained = train(handle_for(tiny_models[model]), archive, tmp_path, 2)
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(tiny_models[model])
    pipe.load_lora_weights(trained.path, adapter_name="theirs")
    changed = {
        name: module.lora_B["theirs"].weight @ module.lora_A["theirs"].weight * module.scaling["theirs"]
        for name, module in pipe.transformer.named_modules()
        if hasattr(module, "lora_B")
    }
    plain = PLAIN[model](tiny_models[model], archive)
    plain.latents = latents_of(handle_for(tiny_models[model]), archive)
    expected = plain.run(2, list(formula_for(handle_for(tiny_models[model])).targets))
    names = {name.removeprefix("transformer.").rpartition(".lora_")[0] for name in expected}
    assert changed.keys() == names
    for name, change in changed.items():
        stem = f"transformer.{name}.lora_"
        torch.testing.assert_close(change, expected[f"{stem}B.weight"] @ expected[f"{stem}A.weight"])


def test_a_trained_file_says_what_it_was_made_for(tiny_models: dict[str, Path], archive: Path, tmp_path: Path) -> None:
    """The shapes of so small a model are those of FLUX.1's first blocks, too."""
    from neurolux.families.files.identify import detect_lora
    from neurolux.weights.stamps import read_described

    shapes, metadata = read_described(train(handle_for(tiny_models["tiny-qwen-image"]), archive, tmp_path, 1).path)
    assert detect_lora(shapes).family == "flux"
    assert detect_lora(shapes, metadata).family == "qwen-image"
    assert detect_lora(shapes, {**metadata, "base_model_family": "another"}).family == "flux"
    relatives = detect_lora(shapes, {"base_model_family": "flux"}).also
    assert "chroma" in relatives


def test_a_pipeline_with_something_applied_is_refused(
    tiny_models: dict[str, Path], adapter_files: dict[str, Path]
) -> None:
    """The LoRA would need what is applied, too."""
    from neurolux.errors import InvalidParameter
    from neurolux.loading.handle import AppliedControl, AppliedLora, AppliedMotion
    from neurolux.training.lora import check_handle
    from neurolux.weights.stamps import stamp_file

    plain = handle_for(tiny_models["tiny-sdxl"])
    check_handle(plain)
    file = stamp_file("sdxl-a", adapter_files["sdxl-a"])
    for applied in (
        replace(plain, loras=(AppliedLora(file, 1.0, 1.0),)),
        replace(plain, controls=(AppliedControl(file, "canny", 1.0, 0.0, 1.0, "", torch.zeros(1, 8, 8, 3)),)),
        replace(plain, motion=AppliedMotion(file, "EulerDiscreteScheduler", {}, 4, 1.0)),
    ):
        with pytest.raises(InvalidParameter, match="link the loader itself to Train LoRA"):
            check_handle(applied)


def test_what_cannot_be_trained_is_refused_with_a_remedy(
    tiny_models: dict[str, Path], archive: Path, tmp_path: Path
) -> None:
    from neurolux.errors import InvalidParameter

    handle = handle_for(tiny_models["tiny-flux-dev"], offload="stream")
    with pytest.raises(InvalidParameter, match="offload stream.*Choose offload none or model"):
        train(handle, archive, tmp_path, 1)
    handle = handle_for(tiny_models["tiny-flux-dev"])
    with pytest.raises(InvalidParameter, match="diverged at learning_rate .* use a smaller one"):
        train(handle, archive, tmp_path, 9, learning_rate=1e30)
    assert torch.isfinite(make_image(handle)).all()


STOCK: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "tiny-flux-dev": (shallow_flux, "Flux", {
        "image_model": "flux", "in_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072,
        "mlp_ratio": 4.0, "num_heads": 24, "depth": 2, "depth_single_blocks": 2, "axes_dim": [16, 56, 56],
        "theta": 10_000, "qkv_bias": True, "guidance_embed": True, "patch_size": 2, "out_channels": 16,
    }),
    "tiny-sdxl": (lambda: diffusers.UNet2DConditionModel(**PUBLISHED_UNET), "SDXL", {
        "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False, "in_channels": 4,
        "num_classes": "sequential", "adm_in_channels": 2816, "model_channels": 320, "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4], "transformer_depth_middle": 10,
        "use_linear_in_transformer": True, "context_dim": 2048, "num_head_channels": 64,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_temporal_attention": False,
    }),
    "tiny-z-image": (shallow_z_image, "ZImage", {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 2,
        "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
        "pad_tokens_multiple": 32,
    }),
    "tiny-qwen-image": (shallow_qwen_image, "QwenImage", {
        "image_model": "qwen_image", "in_channels": 64, "num_layers": 2,
    }),
    "tiny-flux2-klein-base": (shallow_klein, "Flux2", {
        "image_model": "flux2", "in_channels": 128, "context_in_dim": 12288, "hidden_size": 4096, "mlp_ratio": 3.0,
        "num_heads": 32, "depth": 2, "depth_single_blocks": 2, "axes_dim": [32, 32, 32, 32], "theta": 2000,
        "qkv_bias": False, "guidance_embed": False, "patch_size": 1, "out_channels": 128, "global_modulation": True,
        "vec_in_dim": None, "mlp_silu_act": True, "ops_bias": False,
    }),
}  # fmt: skip
"""The denoiser, ComfyUI's class for the model, and its configuration: at full size, transformers with fewer blocks."""


@pytest.mark.parametrize("model", STOCK)
def test_comfyuis_own_lora_loader_uses_every_layer(
    model: str, tiny_models: dict[str, Path], archive: Path, tmp_path: Path
) -> None:
    """A file as the training writes it, for the full architecture: each pair of matrices changes its weight."""
    import comfy.lora
    import comfy.lora_convert
    import comfy.model_base
    import comfy.supported_models
    from neurolux.training.files import save_lora

    make, stock, config = STOCK[model]
    handle = handle_for(tiny_models[model])
    loaded, formula = borrow(handle), formula_for(handle)
    with torch.device("meta"):
        denoiser = make()
    layers = {
        f"{name}.lora_{side}.weight": torch.ones((2, module.in_features) if side == "A" else (module.out_features, 2))
        for name, module in denoiser.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(formula.targets)
        for side in "AB"
    }
    path = save_lora(loaded.pipe, loaded.denoiser_name, tmp_path, "full", layers, formula.file_tensors, {})
    trained = load_file(train(handle, archive, tmp_path, 1).path)
    written = load_file(path)
    assert {name.rpartition(".")[2] for name in trained} == {name.rpartition(".")[2] for name in written}

    theirs = getattr(comfy.supported_models, stock)(config).get_model({}, device="meta")
    keys = comfy.lora.model_lora_keys_unet(theirs, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(written), keys)
    pairs = sum(name.endswith(("lora_A.weight", "lora_down.weight")) for name in written)
    assert len(patches) == pairs == (560 if stock == "SDXL" else len(patches))
    assert {name for patch in patches.values() for name in patch.loaded_keys} == set(written)
    weights = theirs.state_dict()
    for key, patch in patches.items():
        name, (_, start, length) = (key, (0, 0, None)) if isinstance(key, str) else (key[0], key[1])
        shape = (length or weights[name].shape[0], weights[name].shape[1])
        up, down, alpha = patch.weights[:3]
        assert (up.shape[0], down.shape[1]) == shape, key
        assert start + shape[0] <= weights[name].shape[0]
        assert alpha in (None, 2.0)
