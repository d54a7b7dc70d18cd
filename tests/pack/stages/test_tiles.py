"""Refine in Tiles: what is cut, what is blended, and that a tile is what diffusers' image-to-image makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from tests.pack.pipelines import PROMPT, borrow, handle_for, with_controls

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
PLAIN: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "tiny-flux-dev": (
        diffusers.FluxImg2ImgPipeline,
        {"guidance_scale": 3.5, "max_sequence_length": 512, "width": 128, "height": 128},
    ),
    "tiny-sdxl": (diffusers.StableDiffusionXLImg2ImgPipeline, {"guidance_scale": 5.0}),
}
STEPS, STRENGTH = 4, 0.5


def side_limits(minimum: int = 64) -> Any:
    from neurolux.catalog.limits import SizeLimit

    return (SizeLimit(minimum=minimum), SizeLimit(minimum=minimum))


def make_image(height: int, width: int, count: int = 1, seed: int = 5) -> torch.Tensor:
    """Random images of 8 bits a channel, as ComfyUI's IMAGE."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator) / 255


def settle(pipe: Any) -> None:
    """Its weights in memory of their own: products round by the weights' addresses."""
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            for weight in component.parameters():
                weight.data = weight.data.clone()


def refined(
    folder: Path, images: torch.Tensor, *, controls: Sequence[dict[str, Any]] = (), **changes: Any
) -> torch.Tensor:
    from neurolux.stages.prompts.encode import encode
    from neurolux.stages.refine import RefineRequest, refine

    handle = with_controls(handle_for(folder), *controls)
    with torch.inference_mode():  # as ComfyUI runs nodes
        loaded = borrow(handle)
        request = RefineRequest(**{"strength": STRENGTH, "seed": 7, "steps": STEPS, "tile": 128, **changes})
        return refine(loaded, images, encode(loaded, PROMPT), None, request)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (128, 128, [(0, 0)]),
        (256, 128, [(0, 0), (64, 0), (128, 0)]),
        (200, 128, [(0, 0), (72, 0)]),
        (192, 192, [(0, 0), (64, 0), (0, 64), (64, 64)]),
    ],
)
def test_tiles_cover_the_image_and_overlap(width: int, height: int, expected: list[tuple[int, int]]) -> None:
    from neurolux.images.tiles import plan_tiles

    tiles = plan_tiles(width, height, 128, 32, side_limits())
    assert [(tile.left, tile.top) for tile in tiles] == expected
    for one, other in zip(tiles, tiles[1:], strict=False):
        if one.top == other.top:
            assert one.left + one.width - other.left >= 32


def test_a_small_image_is_one_tile_that_the_model_takes() -> None:
    from neurolux.images.tiles import grid_size, padded_to, plan_tiles

    (tile,) = plan_tiles(50, 100, 256, 32, side_limits())
    assert (tile.width, tile.height) == (64, 112)
    padded = padded_to(make_image(100, 50), *grid_size([tile]))
    assert padded.shape == (1, 112, 64, 3)
    assert torch.equal(padded[:, :100, :50], make_image(100, 50))
    assert torch.equal(padded[:, 105, 60], make_image(100, 50)[:, 99, 49])


@pytest.mark.parametrize(("tile", "overlap", "said"), [(100, 0, "tile 100 is not a multiple"), (128, 65, "0 to 64")])
def test_impossible_tiles_are_refused(tile: int, overlap: int, said: str) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.images.tiles import plan_tiles

    with pytest.raises(InvalidParameter, match=said):
        plan_tiles(512, 512, tile, overlap, side_limits())


@pytest.mark.parametrize(
    ("size", "overlap"),
    [((300, 200), 32), ((300, 200), 0), ((300, 200), 64), ((130, 260), 16), ((2048, 2048), 64), ((129, 129), 64)],
)
def test_neighbours_that_disagree_fade_once_within_the_overlap(size: tuple[int, int], overlap: int) -> None:
    """Everywhere else a pixel is that of one tile: the mean of two drawings is blurred."""
    from neurolux.images.tiles import blend, plan_tiles

    side = 1024 if size == (2048, 2048) else 128
    tiles = plan_tiles(*size, side, overlap, side_limits())
    for axis, starts in ((1, sorted({tile.left for tile in tiles})), (0, sorted({tile.top for tile in tiles}))):
        shades = [
            torch.full((side, side, 1), float(starts.index(tile.left if axis else tile.top) % 2)) for tile in tiles
        ]
        made = blend(tiles, shades, overlap).select(1 - axis, 0)[..., 0]
        jumps = made.diff().abs()
        assert jumps.max() <= 1.01 / max(overlap, 1)
        fades = len(starts) - 1
        assert ((made > 0) & (made < 1)).sum() <= fades * max(overlap, 1)
        middles = [(one + side + other) / 2 for one, other in zip(starts, starts[1:], strict=False)]
        if overlap <= min(other - one for one, other in zip(starts, starts[1:], strict=False)):
            assert jumps.sum() == pytest.approx(fades, abs=1e-4)
            for middle in middles:
                assert made[int(middle) - 1 : int(middle) + 1].mean() == pytest.approx(0.5, abs=1 / max(overlap, 2))


def test_tiles_that_agree_give_the_image_back() -> None:
    from neurolux.images.tiles import blend, plan_tiles

    (whole,) = make_image(192, 320)
    tiles = plan_tiles(320, 192, 128, 32, side_limits())
    made = blend(tiles, [tile.cut(whole) for tile in tiles], 32)
    assert torch.allclose(made, whole, atol=1e-6)


@pytest.mark.parametrize("model", PLAIN)
def test_one_tile_equals_diffusers_image_to_image(tiny_models: dict[str, Path], model: str) -> None:
    pipeline_class, arguments = PLAIN[model]
    pipe = pipeline_class.from_pretrained(tiny_models[model])
    settle(pipe)
    images = make_image(128, 128)
    expected = pipe(
        prompt=PROMPT, image=images.movedim(-1, 1), strength=STRENGTH, num_inference_steps=STEPS, output_type="pt",
        generator=torch.Generator().manual_seed(7), **arguments,
    ).images  # fmt: skip
    made = refined(tiny_models[model], images)
    assert torch.equal(made, expected.permute(0, 2, 3, 1))


def test_a_image_of_a_batch_is_the_image_alone(tiny_models: dict[str, Path]) -> None:
    images = make_image(128, 192, count=2)
    both = refined(tiny_models["tiny-flux-schnell"], images, overlap=32)
    assert both.shape == images.shape
    assert torch.equal(both[1:], refined(tiny_models["tiny-flux-schnell"], images[1:], overlap=32, seed=8))
    assert not torch.equal(both[0], images[0])


def test_progress_counts_all_tiles_and_an_interrupt_stops_in_the_middle(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as manager
    import comfy.utils

    seen: list[tuple[int, int]] = []

    def told(value: int, total: int, preview: Any, **_: Any) -> None:
        seen.append((value, total))
        if len(seen) == stop_at:
            manager.interrupt_current_processing()

    stop_at = 0
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", told)
    images = make_image(128, 192)
    refined(tiny_models["tiny-flux-schnell"], images, overlap=32)
    running = round(STEPS * STRENGTH)
    assert [pair for pair in seen if pair[1] == 2 * running] == [(step, 2 * running) for step in range(1, 5)]
    seen.clear()
    stop_at = running + 1
    with pytest.raises(manager.InterruptProcessingException):
        refined(tiny_models["tiny-flux-schnell"], images, overlap=32)
    assert len(seen) == stop_at


CONTROLLED: dict[str, tuple[str, str, type[Any]]] = {
    "tiny-flux-dev": ("tiny-flux-canny", "FluxControlNetImg2ImgPipeline", diffusers.FluxControlNetModel),
    "tiny-sdxl": ("tiny-sdxl-canny", "StableDiffusionXLControlNetImg2ImgPipeline", diffusers.ControlNetModel),
}


@pytest.mark.parametrize("model", CONTROLLED)
def test_under_a_controlnet_each_tile_equals_diffusers_with_that_part_of_the_control_image(
    tiny_models: dict[str, Path], controlnets: dict[str, Path], model: str
) -> None:
    from neurolux.images.tiles import blend, plan_tiles

    name, class_name, net_class = CONTROLLED[model]
    images, drawing = make_image(128, 192), make_image(128, 192, seed=6)
    optional = {} if "flux" in model else {"feature_extractor": None, "image_encoder": None}
    pipe = getattr(diffusers, class_name).from_pretrained(
        tiny_models[model], controlnet=net_class.from_pretrained(controlnets[name]), **optional
    )
    settle(pipe)
    tiles = plan_tiles(192, 128, 128, 32, side_limits())
    assert [tile.left for tile in tiles] == [0, 64]
    parts = []
    for index, tile in enumerate(tiles):
        image, control = (Image.fromarray((tile.cut(whole)[0] * 255).byte().numpy()) for whole in (images, drawing))
        made = pipe(
            prompt=PROMPT, image=image, control_image=control, controlnet_conditioning_scale=0.7, width=128, height=128,
            strength=STRENGTH, num_inference_steps=STEPS, output_type="pt",
            generator=torch.Generator().manual_seed(7 + index),
            **{key: value for key, value in PLAIN[model][1].items() if key not in ("width", "height")},
        ).images  # fmt: skip
        parts.append(made.permute(0, 2, 3, 1)[0])
    controls = [{"path": controlnets[name], "image": drawing}]
    made = refined(tiny_models[model], images, overlap=32, controls=controls)
    assert torch.equal(made[0], blend(tiles, parts, 32))
    assert not torch.equal(made, refined(tiny_models[model], images, overlap=32))


def test_a_image_of_a_batch_follows_its_own_control_image(
    tiny_models: dict[str, Path], controlnets: dict[str, Path]
) -> None:
    folder, path = tiny_models["tiny-sdxl"], controlnets["tiny-sdxl-canny"]
    images, drawings = make_image(128, 128, count=2), make_image(128, 128, count=2, seed=6)
    both = refined(folder, images, controls=[{"path": path, "image": drawings}])
    second = {"path": path, "image": drawings[1:]}
    assert torch.equal(both[1:], refined(folder, images[1:], seed=8, controls=[second]))
    assert not torch.equal(both[:1], refined(folder, images[:1], controls=[second]))


def test_a_control_image_is_resized_with_the_image_and_padded_like_it(controlnets: dict[str, Path]) -> None:
    from neurolux.loading.handle import AppliedControl
    from neurolux.stages.refine import whole_controls
    from neurolux.weights.stamps import stamp_file

    def whole(image: torch.Tensor) -> torch.Tensor:
        file = stamp_file("tiny-flux-canny", controlnets["tiny-flux-canny"])
        control = AppliedControl(file, "tile", 1.0, 0.0, 1.0, "", image)
        return whole_controls([control], (100, 50), (112, 64))[0].image

    slope = torch.linspace(0, 1, 100)
    drawing = torch.stack([slope.expand(50, 100), slope[::2, None].expand(50, 100), slope.expand(50, 100)], dim=-1)
    drawing = drawing[None].mul(255).round() / 255
    made = whole(drawing)
    assert made.shape == (1, 64, 112, 3)
    assert torch.equal(made[:, :50, :100], drawing)
    assert torch.equal(made[:, 60, 105], drawing[:, 49, 99])
    doubled = drawing.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(whole(doubled), made, atol=0.02)
