"""A ControlNet that is trained here for half a minute, on the starter: what it guides is where it says, by the image.

It learns that white discs on black are where things are. The colour, and that it is a disc at all, is the prompt's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel, FluxPipeline
from PIL import Image, ImageDraw
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.pack.pipelines import borrow, with_controls

if TYPE_CHECKING:
    from neurolux.loading.handle import PipelineHandle

pytestmark = pytest.mark.usefixtures("comfy_modules")
STARTER = Path(__file__).parents[3] / "custom_nodes" / "neurolux" / "models" / "starter"
SIDE, RADIUS, TOKENS = 128, 24, 32
COLOURS = {"red": (220, 38, 38), "blue": (37, 99, 235), "green": (46, 160, 67)}
SCENES, BATCH, STEPS, RATE = 72, 8, 45, 2e-3
NEAR = 7
"""Pixels that the middle of what is drawn may be off."""


def discs(middles: Sequence[tuple[int, int]], colour: Any, ground: str, size: tuple[int, int] = (SIDE, SIDE)) -> Any:
    """Discs around ``middles``."""
    image = Image.new("RGB", size, ground)
    for x, y in middles:
        ImageDraw.Draw(image).ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=colour)
    return image


def control_of(*middles: tuple[int, int], size: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    """The control image (1, H, W, 3) that says where."""
    return torch.from_numpy(np.asarray(discs(middles, "white", "black", size), np.float32) / 255)[None]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the trained ControlNet."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = trained(FluxPipeline.from_pretrained(STARTER, dtype=torch.float32))
    folder = tmp_path_factory.mktemp("controlnet") / "places"
    net.save_pretrained(folder)
    return folder


def trained(pipe: Any) -> FluxControlNetModel:
    """A ControlNet of one block, by the rectified-flow loss on discs anywhere."""
    transformer = pipe.transformer.requires_grad_(False)
    rng = np.random.default_rng(0)
    names = [list(COLOURS)[index % len(COLOURS)] for index in range(SCENES)]
    spots = [(int(x), int(y)) for x, y in rng.integers(RADIUS, SIDE - RADIUS, (SCENES, 2))]
    with torch.no_grad():
        texts = {name: pipe.encode_prompt(f"{name} circle", None, max_sequence_length=TOKENS)[:2] for name in COLOURS}
        drawn = packed(pipe, [discs([spot], COLOURS[name], "white") for name, spot in zip(names, spots, strict=True)])
        controls = packed(pipe, [discs([spot], "white", "black") for spot in spots])
    net: Any = FluxControlNetModel.from_transformer(
        transformer, num_layers=1, num_single_layers=0, attention_head_dim=32, num_attention_heads=8
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=(0.9, 0.98))
    places = {
        "txt_ids": torch.zeros(TOKENS, 3),
        "img_ids": FluxPipeline._prepare_latent_image_ids(1, SIDE // 16, SIDE // 16, "cpu", torch.float32),
    }
    for _ in range(STEPS):
        chosen = rng.integers(SCENES, size=BATCH)
        noise = torch.randn(BATCH, *drawn.shape[1:])
        time = torch.sigmoid(torch.randn(BATCH) + 0.8)  # leaning to much noise, where it is decided what goes where
        level = time[:, None, None]
        said = {
            "hidden_states": (1 - level) * drawn[chosen] + level * noise,
            "timestep": time,
            "encoder_hidden_states": torch.cat([texts[names[index]][0] for index in chosen]),
            "pooled_projections": torch.cat([texts[names[index]][1] for index in chosen]),
            "return_dict": False,
            **places,
        }
        with sdpa_kernel(SDPBackend.MATH):
            blocks, singles = net(**said, controlnet_cond=controls[chosen])
            guided = {"controlnet_block_samples": blocks, "controlnet_single_block_samples": singles}
            (velocity,) = transformer(**said, **guided)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(velocity, noise - drawn[chosen]).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval()


def packed(pipe: Any, images: list[Image.Image]) -> torch.Tensor:
    """Their latents as the transformer takes them."""
    pixels = pipe.image_processor.preprocess(images)
    latents = torch.cat([pipe.vae.encode(one).latent_dist.mode() for one in pixels.split(24)])
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    return FluxPipeline._pack_latents(latents, len(latents), *latents.shape[1:])


@pytest.fixture(scope="module")
def starter(comfy_modules: None) -> Iterator[PipelineHandle]:
    """The starter, loaded."""
    from neurolux.catalog.reading import read_catalog
    from neurolux.loading.store import load_handle, pipelines
    from neurolux.memory.module_store import modules

    handle = load_handle(read_catalog().models["starter"], ())
    yield handle
    pipelines.clear()
    modules.clear()


def drawn_by(handle: PipelineHandle, prompt: str, latent: dict[str, Any], strength: float = 1.0) -> torch.Tensor:
    """One image (H, W, 3) as the nodes make it."""
    from neurolux.stages.decode import decode
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.sample import plan_sample, sample

    with torch.inference_mode():
        loaded = borrow(handle)
        request = plan_sample(handle.model, handle.spec.variant, latent, seed=3, strength=strength)
        return decode(loaded, sample(loaded, request, encode(loaded, prompt), None))[0]


EMPTY = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}


def middle(image: torch.Tensor) -> tuple[float, float, str]:
    """Where on white ground something is drawn, in pixels (x, y), and the name of its colour."""
    solid = (1 - image.amin(dim=-1)) > 0.4
    share = solid.float().mean().item()
    assert 0.02 < share < 0.25, f"{share:.2f} of the image is drawn on"
    rows, columns = solid.nonzero(as_tuple=True)
    mean = image[solid].mean(dim=0) * 255
    name = min(COLOURS, key=lambda colour: float((mean - torch.tensor(COLOURS[colour])).norm()))
    return columns.float().mean().item(), rows.float().mean().item(), name


def assert_drawn(image: torch.Tensor, spot: tuple[int, int], colour: str) -> None:
    x, y, name = middle(image)
    assert abs(x - spot[0]) < NEAR and abs(y - spot[1]) < NEAR, f"{(x, y)} instead of {spot}"  # noqa: PT018
    assert name == colour


@pytest.mark.parametrize(
    ("spot", "colour"), [((34, 34), "red"), ((92, 34), "blue"), ((34, 92), "green"), ((92, 92), "red")]
)
def test_the_control_image_says_where_and_the_prompt_what(
    starter: PipelineHandle, places: Path, spot: tuple[int, int], colour: str
) -> None:
    guided = with_controls(starter, {"path": places, "image": control_of(spot), "strength": 1.0})
    assert_drawn(drawn_by(guided, f"{colour} circle", EMPTY), spot, colour)


def test_without_it_the_prompt_alone_decides(starter: PipelineHandle) -> None:
    solid = (1 - drawn_by(starter, "red circle", EMPTY).amin(dim=-1)) > 0.4
    assert solid.float().mean() > 0.25  # as large as the starter draws it, in the middle
    assert solid[SIDE // 2 - 8 : SIDE // 2 + 8, SIDE // 2 - 8 : SIDE // 2 + 8].all()


def photo_of(*middles: tuple[int, int], colour: str = "blue", size: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    """Discs on white, as ComfyUI's IMAGE."""
    return torch.from_numpy(np.asarray(discs(middles, COLOURS[colour], "white", size), np.float32) / 255)[None]


def test_a_image_is_redrawn_where_the_control_image_says(starter: PipelineHandle, places: Path) -> None:
    from neurolux.images.frames import plan_frame
    from neurolux.stages.image_encoding import encode_images

    guided = with_controls(starter, {"path": places, "image": control_of((92, 92)), "strength": 1.0})
    with torch.inference_mode():
        latent = encode_images(
            borrow(starter), photo_of((34, 34)), None, plan_frame(starter.model, (SIDE, SIDE), "crop")
        )
    assert_drawn(drawn_by(guided, "red circle", latent, strength=0.8), (92, 92), "red")


@pytest.mark.parametrize("spot", [(94, 34), (94, 92)])
def test_what_is_masked_is_drawn_where_the_control_image_says_and_the_rest_stays(
    starter: PipelineHandle, places: Path, spot: tuple[int, int]
) -> None:
    from neurolux.images.frames import plan_frame
    from neurolux.stages.image_encoding import encode_images
    from neurolux.stages.latent import put_back

    photo, mask = photo_of((32, 64), colour="green"), torch.zeros(1, SIDE, SIDE)
    mask[:, :, 60:] = 1
    guided = with_controls(starter, {"path": places, "image": control_of(spot), "strength": 1.0})
    with torch.inference_mode():
        latent = encode_images(borrow(starter), photo, mask, plan_frame(starter.model, (SIDE, SIDE), "pad"))
    (made,) = put_back(drawn_by(guided, "red circle", latent)[None], latent["image_origin"])
    assert torch.equal(made[:, :60], photo[0, :, :60])
    assert_drawn(torch.cat([torch.ones(SIDE, 60, 3), made[:, 60:]], dim=1), spot, "red")


def test_each_tile_is_drawn_where_the_control_image_of_the_whole_says(starter: PipelineHandle, places: Path) -> None:
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.refine import RefineRequest, refine

    size, spots = (224, SIDE), [(44, 36), (176, 90)]
    control = {"path": places, "image": control_of(*spots, size=size), "strength": 1.0}
    handle = with_controls(starter, control)
    with torch.inference_mode():
        loaded = borrow(handle)
        request = RefineRequest(strength=0.9, seed=3, tile=SIDE, overlap=32)
        (made,) = refine(loaded, photo_of(size=size), encode(loaded, "blue circle"), None, request)
    left, right = made[:, :112], made[:, 112:]
    assert_drawn(left, spots[0], "blue")
    assert_drawn(right, (spots[1][0] - 112, spots[1][1]), "blue")
