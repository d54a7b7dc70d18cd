"""Videos: the frames are those of diffusers' own pipelines, bit for bit, wherever the weights live, and files play."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    MotionAdapter,
    UNetMotionModel,
)
from PIL import Image

from tests.pack.pipelines import LATENT, PROMPT, borrow, budget_for, handle_for
from tests.tiny_models import SD15_CHANNELS, TEXT_WIDTH, tiny_motion_adapter

pytestmark = pytest.mark.usefixtures("unloaded")
FRAMES = 4
LINEAR: dict[str, Any] = {"beta_schedule": "linear", "timestep_spacing": "linspace", "clip_sample": False}
LIGHTNING: dict[str, Any] = {"beta_schedule": "linear", "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("motion") / "tiny-motion"
    tiny_motion_adapter(seed=9).save_pretrained(folder)
    return folder


def motion_of(folder: Path, *, distilled: bool) -> Any:
    from neurolux.loading.handle import AppliedMotion
    from neurolux.weights.stamps import stamp_file

    file = stamp_file("tiny-motion", folder)
    if distilled:
        return AppliedMotion(file, "EulerDiscreteScheduler", LIGHTNING, 2, 1.0, only_steps=2)
    return AppliedMotion(file, "DDIMScheduler", LINEAR, 2, 6.0)


def ours(
    folder: Path,
    motion: Any,
    *,
    negative: str | None = None,
    frames: int = FRAMES,
    steps: int = 0,
    loras: tuple[Any, ...] = (),
    **choices: Any,
) -> torch.Tensor:
    """The decoded frames (F, H, W, 3)."""
    from neurolux.stages.decode import decode
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.video import plan_video, sample_video

    handle = replace(handle_for(folder, **choices), motion=motion, loras=loras)
    loaded = borrow(handle)
    with torch.inference_mode():  # as ComfyUI runs nodes
        positive = encode(loaded, PROMPT)
        against = encode(loaded, negative) if negative is not None else None
        request = plan_video(handle, LATENT, frames, seed=7, steps=steps)
        return decode(loaded, sample_video(loaded, request, positive, against))


def plain(folder: Path, adapter: Path, motion: Any, dtype: torch.dtype, negative: str | None) -> np.ndarray:
    """What diffusers alone makes of it, its weights in RAM of their own (test_parity.py says why)."""
    base: Any = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    module = MotionAdapter.from_pretrained(adapter, dtype=dtype)
    unet = UNetMotionModel.from_unet2d(base.unet, module)
    sdxl = hasattr(base, "text_encoder_2")
    if sdxl:  # from_unet2d leaves it random
        unet.add_embedding.load_state_dict(base.unet.add_embedding.state_dict())
        unet.to(dtype)
    wanted = EulerDiscreteScheduler if motion.scheduler == "EulerDiscreteScheduler" else DDIMScheduler
    parts = {name: getattr(base, name) for name in ("vae", "text_encoder", "tokenizer")}
    if sdxl:
        parts |= {name: getattr(base, name) for name in ("text_encoder_2", "tokenizer_2")}
    pipe: Any = (AnimateDiffSDXLPipeline if sdxl else AnimateDiffPipeline)(
        **parts,
        unet=unet,
        motion_adapter=module,
        scheduler=wanted.from_config(dict(base.scheduler.config), **dict(motion.schedule)),
    )
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for weight in part.parameters():
                weight.data = weight.data.clone()
    pipe.set_progress_bar_config(disable=True)
    more = {} if sdxl else {"decode_chunk_size": 1}
    latents = pipe(
        prompt=PROMPT,
        negative_prompt=negative,
        num_frames=FRAMES,
        width=128,
        height=128,
        num_inference_steps=motion.steps,
        guidance_scale=motion.guidance,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="latent",
        return_dict=False,
        **more,
    )[0]
    scaled = 1 / pipe.vae.config.scaling_factor * latents[0].movedim(1, 0)
    with torch.no_grad():
        frames = torch.cat([pipe.vae.decode(frame[None], return_dict=False)[0] for frame in scaled])
    return (frames * 0.5 + 0.5).clamp(0, 1).float().movedim(1, -1).numpy()


@pytest.mark.parametrize(
    ("offload", "precision"),
    [("none", "fp32"), ("model", "bf16"), ("stream", "fp32"), ("sequential", "bf16"), ("disk", "fp32")],
)
@pytest.mark.parametrize(("model", "distilled"), [("tiny-sd15", True), ("tiny-sd15", False), ("tiny-sdxl", False)])
def test_the_frames_are_those_of_plain_diffusers(
    tiny_models: dict[str, Path],
    adapter_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    distilled: bool,
    offload: str,
    precision: str,
) -> None:
    from neurolux.memory import placement

    monkeypatch.setattr(placement, "device_budget", budget_for(0.5))
    motion = motion_of(adapter_folder, distilled=distilled)
    negative = None if distilled else "blurry"
    made = ours(tiny_models[model], motion, negative=negative, offload=offload, precision=precision)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    expected = plain(tiny_models[model], adapter_folder, motion, dtype, negative)
    assert made.shape == (FRAMES, 128, 128, 3)
    assert np.array_equal(made.numpy(), expected)


def test_the_frames_differ_and_the_same_seed_gives_them_again(
    tiny_models: dict[str, Path], adapter_folder: Path
) -> None:
    motion = motion_of(adapter_folder, distilled=True)
    first, again = (ours(tiny_models["tiny-sd15"], motion) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_a_image_of_the_same_model_is_what_it_was_before_the_video(
    tiny_models: dict[str, Path], adapter_folder: Path
) -> None:
    from tests.pack.pipelines import sample_with

    handle = handle_for(tiny_models["tiny-sd15"])
    before = sample_with(borrow(handle), handle)
    ours(tiny_models["tiny-sd15"], motion_of(adapter_folder, distilled=True))
    assert torch.equal(sample_with(borrow(handle), handle), before)


@pytest.mark.parametrize("original", [False, True])
def test_a_single_file_is_the_same_adapter(
    tiny_models: dict[str, Path], adapter_folder: Path, tmp_path: Path, original: bool
) -> None:
    """Heads and groups are not in a file; those of the published ones do not fit widths of 16."""
    from neurolux.adapters.motion import weights as motion_weights
    from safetensors.torch import load_file, save_file

    state = load_file(adapter_folder / "diffusion_pytorch_model.safetensors")
    if original:
        names = {".transformer_blocks": ".temporal_transformer.transformer_blocks", ".norm1": ".norms.0"}
        names |= {".norm2": ".norms.1", ".norm3": ".ff_norm", ".attn1": ".attention_blocks.0"}
        names |= {".attn2": ".attention_blocks.1", ".0.norm.": ".0.temporal_transformer.norm."}
        names |= {".1.norm.": ".1.temporal_transformer.norm.", "proj_in": "temporal_transformer.proj_in"}
        names |= {"proj_out": "temporal_transformer.proj_out"}
        renamed = {}
        for key, value in state.items():
            for new, old in names.items():
                key = key.replace(new, old)
            if "pos_embed" not in key:
                renamed[key] = value
        state = renamed
    file = tmp_path / "motion.safetensors"
    save_file(state, file)
    motion = motion_of(adapter_folder, distilled=True)
    expected = ours(tiny_models["tiny-sd15"], motion)
    nothing = pytest.MonkeyPatch()
    with nothing.context() as patch:
        patch.setattr(motion_weights, "GROUPS", 8)
        assert torch.equal(ours(tiny_models["tiny-sd15"], motion_of(file, distilled=True)), expected)


def test_wrong_requests_say_what_would_be_right(tiny_models: dict[str, Path], adapter_folder: Path) -> None:
    from neurolux.errors import InvalidParameter, WeightsMissing

    motion = motion_of(adapter_folder, distilled=True)
    with pytest.raises(InvalidParameter, match="num_frames 9 is more than the 8"):
        ours(tiny_models["tiny-sd15"], motion, frames=9)
    with pytest.raises(InvalidParameter, match="set steps to 2"):
        ours(tiny_models["tiny-sd15"], motion, steps=3)
    with pytest.raises(InvalidParameter, match="put Apply Motion before"):
        ours(tiny_models["tiny-sd15"], None)
    with pytest.raises(WeightsMissing, match="cannot be loaded"):
        ours(tiny_models["tiny-sd15"], motion_of(tiny_models["tiny-sd15"] / "unet", distilled=True))


def test_a_lora_acts_on_the_video_as_long_as_it_is_applied(
    tiny_models: dict[str, Path], adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurolux.families import sd15, sdxl
    from neurolux.loading.handle import AppliedLora
    from neurolux.weights.stamps import stamp_file
    from safetensors.torch import save_file

    monkeypatch.setattr(sd15, "TEXT_WIDTH", TEXT_WIDTH)  # it distinguishes 1.5's LoRAs from SDXL's
    monkeypatch.setattr(sdxl, "OTHER_TEXT_WIDTHS", {TEXT_WIDTH})
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    spread = torch.Generator().manual_seed(1)
    state = {
        f"{layer}.lora_A.weight": torch.randn(4, TEXT_WIDTH, generator=spread),
        f"{layer}.lora_B.weight": torch.randn(SD15_CHANNELS[0], 4, generator=spread),
    }
    save_file(state, tmp_path / "tiny.safetensors")
    lora = AppliedLora(stamp_file("tiny", tmp_path / "tiny.safetensors"), 1.0, 1.0)
    motion = motion_of(adapter_folder, distilled=True)
    without = ours(tiny_models["tiny-sd15"], motion)
    assert not torch.equal(ours(tiny_models["tiny-sd15"], motion, loras=(lora,)), without)
    assert torch.equal(ours(tiny_models["tiny-sd15"], motion), without)


def test_unloading_everything_frees_the_motion_adapter(tiny_models: dict[str, Path], adapter_folder: Path) -> None:
    import comfy.model_management as manager
    from neurolux.loading.store import pipelines
    from neurolux.memory.module_store import modules

    motion = motion_of(adapter_folder, distilled=True)
    expected = ours(tiny_models["tiny-sd15"], motion)
    assert modules.keys("motion")
    manager.unload_all_models()
    pipelines.sweep()
    assert not modules.keys("motion")
    assert torch.equal(ours(tiny_models["tiny-sd15"], motion), expected)


def test_an_interrupt_stops_in_the_middle(
    tiny_models: dict[str, Path], adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as mm
    from neurolux.stages.video import VideoProgress

    steps: list[int] = []
    step = VideoProgress.step

    def interrupt(self: VideoProgress, pipe: Any, number: int, *rest: Any) -> Any:
        steps.append(number)
        mm.interrupt_current_processing()
        return step(self, pipe, number, *rest)

    monkeypatch.setattr(VideoProgress, "step", interrupt)
    with pytest.raises(mm.InterruptProcessingException):
        ours(tiny_models["tiny-sd15"], motion_of(adapter_folder, distilled=True))
    assert steps == [0]


# -- files -------------------------------------------------------------------------------------------------------------


def moving_square(count: int = 6) -> list[Image.Image]:
    """A red square that goes to the right on blue."""
    frames = []
    for index in range(count):
        frame = Image.new("RGB", (64, 48), (0, 0, 200))
        frame.paste((220, 0, 0), (index * 8, 16, index * 8 + 16, 32))
        frames.append(frame)
    return frames


def test_an_mp4_has_every_frame_at_its_time_and_the_graph(tmp_path: Path) -> None:
    from neurolux.images.video_file import write_mp4

    frames, path = moving_square(), tmp_path / "a.mp4"
    write_mp4(frames, path, 8.0, 95, {"prompt": {"1": {"class_type": "X"}}})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate, stream.width) == ("h264", 8, 64)
        assert container.metadata["prompt"] == '{"1": {"class_type": "X"}}'
    assert len(decoded) == len(frames)
    for index, frame in enumerate(decoded):
        red = frame[24, index * 8 + 8]
        assert red[0] > 150 > 100 > red[2]
    write_mp4(frames, tmp_path / "b.mp4", 8.0, 95, {"prompt": {"1": {"class_type": "X"}}})
    assert (tmp_path / "b.mp4").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)])
def test_an_mp4_holds_bt709_and_says_so(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    from neurolux.images.video_file import write_mp4

    write_mp4([Image.new("RGB", (64, 48), colour)] * 2, tmp_path / "a.mp4", 8.0, 100, {})
    with av.open(str(tmp_path / "a.mp4")) as container:
        coding = container.streams.video[0].codec_context
        assert (coding.colorspace, coding.color_primaries, coding.color_trc, coding.color_range) == (1, 1, 1, 1)
        frame = next(container.decode(video=0))
        stored = [bytes(plane)[0] for plane in frame.planes]
    red, green, blue = (value / 255 for value in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]
    assert np.abs(np.array(stored, float) - expected).max() <= 2


def test_a_webp_is_animated(tmp_path: Path) -> None:
    from neurolux.images.video_file import write_webp

    write_webp(moving_square(), tmp_path / "a.webp", 10.0, 90, Image.Exif())
    with Image.open(tmp_path / "a.webp") as image:
        image.load()
        assert (image.n_frames, image.info["duration"], image.info["loop"]) == (6, 100, 0)  # pyright: ignore
