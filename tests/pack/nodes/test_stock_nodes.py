"""Stock nodes and ours in one graph of a real ComfyUI, on a device that is too small for both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.pack.comfy_server import ComfyServer, Run, comfyui_dir, running_comfyui
from tests.pack.graphs import Graph, node
from tests.tiny_models import write_sdxl

PACK = Path(__file__).parents[3] / "custom_nodes" / "neurolux"
DEVICE_NODES = Path(__file__).parents[1] / "device_nodes"
STOCK_TEXT_WIDTH = 768
"""What a Stable Diffusion 1 attends to: with encoders of half of it ours makes conditioning for the stock sampler."""
ROOM = 10**9
SAMPLING_ROOM = 45_000_000
"""Beside its weights stock keeps 42 MB free to sample so small an image; ours takes 14 MB."""
OURS, STOCK = "UNet2DConditionModel", "BaseModel"
"""The denoisers, as the manager's list has them."""


@dataclass
class House:
    """A ComfyUI with a tiny model of ours, a tiny stock checkpoint and a stock VAE."""

    comfyui: ComfyServer


def write_checkpoint(path: Path) -> None:
    """A Stable Diffusion 1 of one level: ComfyUI knows it by its width and its context."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    torch.manual_seed(1)
    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[1], channel_mult=(1,),
        transformer_depth=[1], transformer_depth_output=[0, 0], transformer_depth_middle=-1,
        context_dim=STOCK_TEXT_WIDTH, num_heads=8, use_spatial_transformer=True, legacy=False, dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    path.parent.mkdir(parents=True)
    save_file({f"model.diffusion_model.{name}": value.half() for name, value in unet.state_dict().items()}, path)


def write_small_vae(folder: Path) -> None:
    """A TAESD, which stock loads under its own name from ``vae_approx``."""
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(2)
    vae = TAESD(latent_channels=4)
    for weight in vae.parameters():  # as ComfyUI makes it, its memory is whatever was there
        torch.nn.init.normal_(weight, std=0.05)
    folder.mkdir(parents=True)
    for part in ("encoder", "decoder"):
        save_file(getattr(vae, f"taesd_{part}").state_dict(), folder / f"taesdxl_{part}.safetensors")


@pytest.fixture(scope="module")
def house(comfy_modules: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests here."""
    base = tmp_path_factory.mktemp("stock")
    write_sdxl(base / "models" / "diffusers" / "ours", lightning=True, seed=3, text_width=STOCK_TEXT_WIDTH // 2)
    write_checkpoint(base / "models" / "checkpoints" / "stock.safetensors")
    write_small_vae(base / "models" / "vae_approx")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "neurolux").symlink_to(PACK)
    with running_comfyui(comfyui_dir(), base, DEVICE_NODES) as server:
        yield House(server)


def graph(rooms: tuple[int, int, int]) -> Graph:
    """Ours samples, stock samples on from there, ours samples again; each latent is decoded by ours and by stock.

    ``rooms``: bytes of the device for each of the three.
    """
    result = {"output_format": "png", "quality": 90, "filename_prefix": "test/stock"}
    made: Graph = {
        "load": node("NeuroLuxLoadModel", model="ours", precision="fp32", offload="none"),
        "positive": node("NeuroLuxEncodePrompt", pipeline=["load", 0], text="a cat"),
        "negative": node("NeuroLuxEncodePrompt", pipeline=["load", 0], text="a dog"),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "start": node("FakeDeviceMemory", samples=["empty", 0], memory=rooms[0]),
        "ours": ours("start"),
        "after ours": node("FakeDeviceMemory", samples=["ours", 0], memory=rooms[1]),
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name="stock.safetensors"),
        "stock": node(
            "KSampler", model=["checkpoint", 0], positive=["positive", 0], negative=["negative", 0],
            latent_image=["after ours", 0], seed=5, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal",
            denoise=0.5,
        ),
        "after stock": node("FakeDeviceMemory", samples=["stock", 0], memory=rooms[2]),
        "emptied": node("LatentMultiply", samples=["after stock", 0], multiplier=0.0),
        "again": ours("emptied"),
        "after again": node("FakeDeviceMemory", samples=["again", 0], memory=ROOM),
        "vae": node("VAELoader", vae_name="taesdxl"),
        "encoded": node("VAEEncode", pixels=["stock by stock", 0], vae=["vae", 0]),
        "encoded by ours": node("NeuroLuxDecode", pipeline=["load", 0], latent=["encoded", 0]),
    }  # fmt: skip
    for name, sampled in {"ours": "after ours", "stock": "after stock", "again": "after again"}.items():
        made[f"{name} by ours"] = node("NeuroLuxDecode", pipeline=["load", 0], latent=[sampled, 0])
        made[f"{name} by stock"] = node("VAEDecode", samples=[sampled, 0], vae=["vae", 0])
    for name in [name for name in made if " by " in name]:
        made[f"save {name}"] = node("NeuroLuxResult", images=[name, 0], name=name.replace(" ", "_"), **result)
    return made


def ours(latent: str) -> dict[str, Any]:
    """Our Sample."""
    return node(
        "NeuroLuxSample", pipeline=["load", 0], positive=["positive", 0], latent=[latent, 0], seed=7, steps=4,
        guidance=-1.0,
    )  # fmt: skip


def make_images(house: House, run: Run) -> dict[str, np.ndarray]:
    """What the graph made, by the names of the nodes."""
    assert run.status == "success", run.messages
    saved = [name for name in run.outputs if name.startswith("save ")]
    return {name.removeprefix("save "): as_array(house.comfyui.images(run, name)[0]) for name in saved}


def within(image: np.ndarray, other: np.ndarray, levels: int) -> bool:
    """Whether two images are the same but for ``levels`` of 255: stock rounds otherwise where it casts weights."""
    return np.abs(image.astype(int) - other.astype(int)).max() <= levels


def as_array(image: Image.Image) -> np.ndarray:
    """Its pixels."""
    return np.asarray(image)


def on_device(run: Run, probe: str) -> dict[str, list[int]]:
    """Bytes on the device and in all, by the models' classes, when ``probe`` ran."""
    return run.outputs[probe]["models"][0]


def taken_by_ours(models: dict[str, list[int]]) -> int:
    """Bytes on the device of what is not stock's."""
    return sum(loaded for name, (loaded, _) in models.items() if name not in (STOCK, "TAESD"))


def test_stock_and_ours_take_the_device_in_turn(house: House) -> None:
    ample = house.comfyui.run(graph((ROOM, ROOM, ROOM)))
    expected = make_images(house, ample)
    before = on_device(ample, "after again")
    ours_bytes, stock_bytes = before[OURS][1], before[STOCK][1]
    assert before[OURS][0] == ours_bytes
    assert before[STOCK][0] == stock_bytes
    assert 10 * ours_bytes < stock_bytes

    house.comfyui.post("/free", {"unload_models": True, "free_memory": True})
    house.comfyui.run({name: value for name, value in graph((1, 1, 1)).items() if name in ("empty", "start")})
    # ComfyUI frees between two graphs: before or after that one, and before the next
    tight = house.comfyui.run(graph((ROOM, stock_bytes + SAMPLING_ROOM, stock_bytes + ours_bytes // 2)))
    assert on_device(tight, "start") == {}
    assert on_device(tight, "after ours")[OURS] == [ours_bytes, ours_bytes]
    after_stock = on_device(tight, "after stock")
    assert after_stock[STOCK] == [stock_bytes, stock_bytes]
    assert taken_by_ours(after_stock) < taken_by_ours(on_device(tight, "after ours"))
    after_again = on_device(tight, "after again")
    assert after_again[OURS] == [ours_bytes, ours_bytes]
    assert after_again.get(STOCK, [0])[0] < stock_bytes
    assert all(tight.outputs[probe]["free"][0] >= 0 for probe in tight.outputs if probe.startswith("after"))

    made = make_images(house, tight)
    assert made.keys() == expected.keys()
    for name, image in made.items():
        assert within(image, expected[name], 0 if name in ("ours by ours", "again by ours") else 2), name
        assert image.std() > 1, name
    assert np.array_equal(made["ours by ours"], made["again by ours"])
    assert not np.array_equal(made["ours by ours"], made["stock by ours"])
