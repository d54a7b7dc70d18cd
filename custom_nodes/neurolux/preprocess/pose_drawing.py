"""A person's joints as the coloured skeleton that pose ControlNets were trained on: OpenPose's, with 18 joints.

Joints and limbs are those of OpenPose's COCO model (its documentation, "Pose Output Format (COCO)"); colours go once
round the colour circle. Pure drawing: no network, no ComfyUI.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

Joint = tuple[float, float] | None
"""A place in pixels, or None where it was not seen."""
JOINTS = 18
NOSE, NECK = 0, 1
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Pairs of joints: shoulders, arms, hips, legs, neck, eyes, ears."""
OPENPOSE_FROM_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""Where each OpenPose joint is among COCO's 17 keypoints; the neck is between the shoulders."""
COCO_SHOULDERS = (5, 6)
LIMB_BRIGHTNESS = 0.6
STICK_WIDTH, STICK_SIDE = 4, 512
"""Half a limb's width and a joint's radius in pixels, for images whose shorter side is STICK_SIDE pixels."""
ELLIPSE_POINTS = 72


def colour(index: int) -> tuple[int, int, int]:
    """The colour of joint ``index``, and of limb ``index``."""
    red, green, blue = colorsys.hsv_to_rgb(index / JOINTS, 1.0, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def openpose_joints(keypoints: Sequence[Joint]) -> list[Joint]:
    """COCO's 17 keypoints as OpenPose's 18 joints."""
    joints: list[Joint] = [None if index is None else keypoints[index] for index in OPENPOSE_FROM_COCO]
    left, right = (keypoints[index] for index in COCO_SHOULDERS)
    if left is not None and right is not None:
        joints[NECK] = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    return joints


def draw_poses(persons: Sequence[Sequence[Joint]], width: int, height: int) -> Image.Image:
    """Skeletons of ``persons`` (18 joints each) on black. A limb needs both its joints."""
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    radius = STICK_WIDTH * max(min(width, height) / STICK_SIDE, 0.25)
    for joints in persons:
        for index, (first, second) in enumerate(LIMBS):
            start, end = joints[first], joints[second]
            if start is not None and end is not None:
                fill = tuple(int(level * LIMB_BRIGHTNESS) for level in colour(index))
                draw.polygon(ellipse(start, end, radius), fill=fill)
        for index, joint in enumerate(joints):
            if joint is not None:
                x, y = joint
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour(index))
    return image


def ellipse(start: tuple[float, float], end: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """The outline of a slim ellipse from ``start`` to ``end``."""
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    half = math.dist(start, end) / 2
    direction = math.atan2(end[1] - start[1], end[0] - start[0])
    points = []
    for step in range(ELLIPSE_POINTS):
        angle = 2 * math.pi * step / ELLIPSE_POINTS
        along, across = half * math.cos(angle), radius * math.sin(angle)
        points.append(
            (
                middle[0] + along * math.cos(direction) - across * math.sin(direction),
                middle[1] + along * math.sin(direction) + across * math.cos(direction),
            )
        )
    return points
