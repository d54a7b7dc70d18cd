"""Nodes that make a control image of any image: edges, depth, poses. A ready control image passes through."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..library.controlnets import preprocessor
from ..loading.node_progress import NodeReporter
from ..preprocess.canny import canny_images
from ..preprocess.canny_filter import MOST
from ..preprocess.depth import depth_maps
from ..preprocess.pose import pose_images
from ..stages.latent import fitted_to_latent
from .sockets import CATEGORY

PREPROCESS = f"{CATEGORY}/control images"
DEPTH_MODEL, POSE_MODEL, PERSON_MODEL = "depth-anything-v2-small", "vitpose-base", "rt-detr"


def image_input() -> io.Image.Input:
    """The image."""
    return io.Image.Input("image", tooltip="Any image, or a ready control image (preprocess off).")


def preprocess_input() -> io.Boolean.Input:
    """Whether there is anything to do."""
    return io.Boolean.Input(
        "preprocess",
        default=True,
        tooltip="On: make the control image of any image. Off: the image is a control image already.",
    )


def latent_input() -> io.Latent.Input:
    """The size of the result."""
    return io.Latent.Input(
        "latent",
        optional=True,
        tooltip=(
            "The result's size: the image is cut to its shape around the middle and resized to it first. One with "
            "the proportions of an image that is redrawn stays over the same things in it."
        ),
    )


def control_output(tooltip: str) -> io.Image.Output:
    """The control image."""
    return io.Image.Output("control_image", display_name="control image", tooltip=tooltip)


def score_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    """A share."""
    return io.Float.Input(name, default=default, min=0.01, max=0.99, step=0.01, round=0.001, tooltip=tooltip)


def threshold_input(name: str, default: int, tooltip: str) -> io.Int.Input:
    """A gradient of 8-bit pixels."""
    return io.Int.Input(name, default=default, min=1, max=MOST, tooltip=tooltip)


class CannyEdges(io.ComfyNode):
    """Canny Edges."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxCannyEdges",
            display_name="Canny Edges",
            category=PREPROCESS,
            description="White edges on black, for a canny ControlNet: OpenCV's, which see colours too.",
            inputs=[
                image_input(),
                preprocess_input(),
                threshold_input("low_threshold", 100, "Edges weaker than this are left out."),
                threshold_input(
                    "high_threshold", 200, "Edges stronger than this are kept, and weaker ones that touch them."
                ),
                latent_input(),
            ],
            outputs=[control_output("The edges.")],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        preprocess: bool,
        low_threshold: int,
        high_threshold: int,
        latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        control_image = fitted_to_latent(image, latent)
        if not preprocess:
            return io.NodeOutput(control_image)
        return io.NodeOutput(canny_images(control_image, low_threshold, high_threshold))


class DepthMap(io.ComfyNode):
    """Depth Map."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxDepthMap",
            display_name="Depth Map",
            category=PREPROCESS,
            description="How near everything is, for a depth ControlNet: white is near. By Depth Anything V2 Small.",
            inputs=[image_input(), preprocess_input(), latent_input()],
            outputs=[control_output("The depth map.")],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, preprocess: bool, latent: dict[str, Any] | None = None) -> io.NodeOutput:
        control_image = fitted_to_latent(image, latent)
        if not preprocess:
            return io.NodeOutput(control_image)
        return io.NodeOutput(depth_maps(control_image, preprocessor(DEPTH_MODEL, NodeReporter())))


class PoseSkeleton(io.ComfyNode):
    """Pose Skeleton."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxPoseSkeleton",
            display_name="Pose Skeleton",
            category=PREPROCESS,
            description="The persons in an image as OpenPose skeletons, for a pose ControlNet. By ViTPose.",
            inputs=[
                image_input(),
                preprocess_input(),
                score_input("person_score", 0.5, "How sure it must be that somebody is a person."),
                score_input("joint_score", 0.3, "How sure it must be of a joint to draw it."),
                latent_input(),
            ],
            outputs=[control_output("The skeletons.")],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        preprocess: bool,
        person_score: float,
        joint_score: float,
        latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        control_image = fitted_to_latent(image, latent)
        if not preprocess:
            return io.NodeOutput(control_image)
        reporter = NodeReporter()
        detector, poser = preprocessor(PERSON_MODEL, reporter), preprocessor(POSE_MODEL, reporter)
        return io.NodeOutput(pose_images(control_image, detector, poser, person_score, joint_score))
