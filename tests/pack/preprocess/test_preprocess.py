"""Control images of any image: depth and poses by tiny networks of the real classes, and the drawing itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_preprocessors import PERSON_SCORE, PERSONS, write_preprocessors

pytestmark = pytest.mark.usefixtures("comfy_modules", "unloaded")
WIDTH, HEIGHT = 128, 96


@pytest.fixture(scope="session")
def networks(base_directory: Path) -> dict[str, Path]:
    """The tiny networks, where ComfyUI finds them."""
    return write_preprocessors(base_directory / "models" / "preprocessors")


def make_images(count: int = 1) -> torch.Tensor:
    """Random images of 8 bits a channel, as ComfyUI's IMAGE."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, HEIGHT, WIDTH, 3), generator=generator) / 255


def as_numpy(image: torch.Tensor) -> np.ndarray:
    return (image.numpy() * 255).round().astype(np.uint8)


def test_depth_equals_plain_transformers_and_uses_the_whole_range(networks: dict[str, Path]) -> None:
    from neurolux.preprocess.depth import depth_maps
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    folder = networks["depth-anything-v2-small"]
    images = make_images(2)
    with torch.inference_mode():  # as ComfyUI runs nodes
        made = depth_maps(images, folder)
    assert made.shape == (2, HEIGHT, WIDTH, 3)
    assert made.dtype == torch.float32
    module = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    inputs = AutoImageProcessor.from_pretrained(folder)(images=as_numpy(images[1]), return_tensors="pt")
    with torch.no_grad():
        depth = module(**inputs).predicted_depth[None]
    depth = torch.nn.functional.interpolate(depth, (HEIGHT, WIDTH), mode="bicubic", align_corners=False)[0, 0]
    expected = (depth - depth.min()) / (depth.max() - depth.min())
    for channel in range(3):
        assert torch.equal(made[1, ..., channel], expected)


def test_a_flat_depth_is_black() -> None:
    from neurolux.preprocess.depth import stretched

    assert not stretched(torch.full((1, 1, 7, 7), 3.0), 20, 30).any()


def test_poses_equal_plain_transformers(networks: dict[str, Path]) -> None:
    from neurolux.preprocess.pose import pose_images
    from neurolux.preprocess.pose_drawing import draw_poses, openpose_joints
    from transformers import AutoImageProcessor, AutoModelForObjectDetection, VitPoseForPoseEstimation

    image = make_images()
    with torch.inference_mode():
        made = pose_images(image, networks["rt-detr"], networks["vitpose-base"], 0.5, 0.05)
    detector = AutoModelForObjectDetection.from_pretrained(networks["rt-detr"]).eval()
    finder = AutoImageProcessor.from_pretrained(networks["rt-detr"])
    poser = VitPoseForPoseEstimation.from_pretrained(networks["vitpose-base"]).eval()
    reader = AutoImageProcessor.from_pretrained(networks["vitpose-base"])
    with torch.no_grad():
        found = detector(**finder(images=as_numpy(image[0]), return_tensors="pt"))
        (persons,) = finder.post_process_object_detection(found, threshold=0.5, target_sizes=[(HEIGHT, WIDTH)])
        boxes = persons["boxes"].numpy()
        boxes[:, 2:] -= boxes[:, :2]
        poses = poser(**reader(images=as_numpy(image[0]), boxes=[boxes], return_tensors="pt"))
    (people,) = reader.post_process_pose_estimation(poses, boxes=[boxes])
    assert len(people) == PERSONS
    skeletons = [
        openpose_joints(
            [
                tuple(place) if score >= 0.05 else None
                for place, score in zip(person["keypoints"].tolist(), person["scores"].tolist(), strict=True)
            ]
        )
        for person in people
    ]
    assert sum(joint is not None for skeleton in skeletons for joint in skeleton) > 5
    expected = np.asarray(draw_poses(skeletons, WIDTH, HEIGHT))
    assert expected.any()
    assert np.array_equal(as_numpy(made[0]), expected)


def test_a_image_without_a_person_says_what_to_do(networks: dict[str, Path]) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.preprocess.pose import pose_images

    with pytest.raises(InvalidParameter, match="no person was found in the image.*preprocess to false") as caught:
        pose_images(make_images(), networks["rt-detr"], networks["vitpose-base"], PERSON_SCORE + 0.1, 0.3)
    assert caught.value.field == "control_image"


def test_wrong_and_damaged_networks_are_named(networks: dict[str, Path], tmp_path: Path) -> None:
    from neurolux.errors import WeightsMissing
    from neurolux.preprocess.depth import depth_maps

    with pytest.raises(WeightsMissing, match="vitpose-base cannot be loaded.*delete it, and it is fetched again"):
        depth_maps(make_images(), networks["vitpose-base"])
    for file in networks["depth-anything-v2-small"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:200])
    with pytest.raises(WeightsMissing, match="cannot be loaded"):
        depth_maps(make_images(), tmp_path)


def test_the_manager_knows_the_networks_and_can_take_them(networks: dict[str, Path]) -> None:
    import comfy.model_management as manager
    from neurolux.memory.module_store import modules
    from neurolux.preprocess.depth import depth_maps

    folder = networks["depth-anything-v2-small"]
    first = depth_maps(make_images(), folder)
    (memory,) = modules.memory("preprocessor")[folder.name]
    assert memory.device_bytes > 100_000
    assert "DepthAnythingForDepthEstimation" in {
        type(one.model.model).__name__ for one in manager.current_loaded_models
    }
    manager.unload_all_models()
    assert manager.current_loaded_models == []
    modules.sweep()
    assert modules.memory("preprocessor") == {}
    assert torch.equal(depth_maps(make_images(), folder), first)


def test_an_interrupt_between_two_images_stops(networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as manager
    from neurolux.preprocess import depth as preprocess_depth

    done: list[int] = []
    step = preprocess_depth.ImageProgress.step

    def interrupting(progress: Any) -> None:
        done.append(len(done))
        manager.interrupt_current_processing()
        step(progress)

    monkeypatch.setattr(preprocess_depth.ImageProgress, "step", interrupting)
    with pytest.raises(manager.InterruptProcessingException):
        preprocess_depth.depth_maps(make_images(3), networks["depth-anything-v2-small"])
    assert len(done) == 1


OPENCV = [
    "...#...#...#...#...#...#....",
    "....#...#...#...#......#....",
    ".#.##.#.##.##...###....#....",
    "#....#....#...##..##....#..#",
    ".......#...........##...#.#.",
    ".....#.#....#......#...#....",
    "#.....###...#.##..#....#....",
    ".###....###.....##..#.##....",
    "...#......#.....#..#....#...",
    "....##....###..#..##...#....",
    "###...####..#.##.##...##..##",
    "..##.........#...#..##......",
    "...#........#...#...#...#...",
    "...#.......#...#...#...#....",
]
"""What OpenCV 5.0's Canny with thresholds 60 and 150 makes of ``colours``."""


def colours() -> np.ndarray:
    """A small smooth image of random colours."""
    noise = np.random.default_rng(7).integers(0, 256, (4, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((28, 14), Image.Resampling.BILINEAR))


def test_edges_are_opencv_s() -> None:
    from neurolux.preprocess.canny import canny_images

    made = canny_images(torch.tensor(colours()).float()[None] / 255, 60, 150)
    assert made.shape == (1, 14, 28, 3)
    assert ["".join(".#"[int(value)] for value in row) for row in made[0, ..., 1]] == OPENCV


def test_two_colours_of_one_grey_have_an_edge_between_them() -> None:
    from neurolux.preprocess.canny_filter import canny

    pixels = np.zeros((8, 8, 3), np.int32)
    pixels[:, :4, 0], pixels[:, 4:, 1] = 118, 60
    edges = canny(pixels, 100, 200)
    assert edges[:, 3].all()
    assert not edges[:, [0, 1, 2, 5, 6, 7]].any()


def test_a_weak_edge_counts_where_it_touches_a_strong_one() -> None:
    from neurolux.preprocess.canny_filter import canny

    pixels = np.zeros((30, 40, 3), np.int32)
    pixels[:15, 20:], pixels[15:, 20:] = 200, 40  # one edge, half of it weak
    alone = np.zeros_like(pixels)
    alone[:, 20:] = 40
    assert canny(pixels, 100, 200)[25].any()
    assert not canny(alone, 100, 200).any()
    assert canny(alone, 100, 150).any()


def test_thresholds_the_wrong_way_round_are_refused() -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.preprocess.canny import canny_images

    with pytest.raises(InvalidParameter, match="low_threshold 200 is above high_threshold 100"):
        canny_images(make_images(), 200, 100)


def standing_person() -> list[tuple[float, float] | None]:
    """COCO's keypoints of somebody who stands upright and faces us, in an image of 512x512."""
    return [
        (256, 80), (266, 72), (246, 72), (280, 78), (232, 78), (310, 140), (202, 140), (330, 220), (182, 220),
        (340, 300), (172, 300), (290, 300), (222, 300), (292, 390), (220, 390), (294, 480), (218, 480),
    ]  # fmt: skip


def test_a_skeleton_has_openpose_s_colours_in_their_places() -> None:
    from neurolux.preprocess.pose_drawing import draw_poses, openpose_joints

    joints = openpose_joints(standing_person())
    image = draw_poses([joints], 512, 512)
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert image.getpixel((256, 80)) == (255, 0, 0)  # the nose
    assert image.getpixel((256, 140)) == (255, 85, 0)  # the neck, between the shoulders
    assert image.getpixel((202, 140)) == (255, 170, 0)  # the right shoulder, on the image's left
    assert image.getpixel((310, 140)) == (85, 255, 0)  # the left shoulder
    assert image.getpixel((294, 480)) == (85, 0, 255)  # the left ankle
    assert image.getpixel((229, 140)) == (153, 0, 0)  # the limb from the neck to the right shoulder, darker
    assert image.getpixel((283, 140)) == (153, 51, 0)  # and to the left one


def test_what_was_not_seen_is_not_drawn() -> None:
    from neurolux.preprocess.pose_drawing import draw_poses, openpose_joints

    keypoints = standing_person()
    keypoints[6] = None  # the right shoulder: no neck either, and no limb from them
    joints = openpose_joints(keypoints)
    assert joints[1] is None
    assert joints[2] is None
    image = draw_poses([joints], 512, 512)
    assert image.getpixel((229, 140)) == (0, 0, 0)
    assert image.getpixel((182, 220)) == (255, 255, 0)  # the elbow alone
    assert not np.asarray(draw_poses([[None] * 18], 64, 64)).any()


def test_limbs_grow_with_the_image() -> None:
    from neurolux.preprocess.pose_drawing import draw_poses, openpose_joints

    small = openpose_joints(standing_person())
    large = [None if joint is None else (joint[0] * 2, joint[1] * 2) for joint in small]
    few, many = (
        np.asarray(draw_poses([one], side, side)).any(-1).mean() for one, side in ((small, 512), (large, 1024))
    )
    assert few == pytest.approx(many, rel=0.1)
