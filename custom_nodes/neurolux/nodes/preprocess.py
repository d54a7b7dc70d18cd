"""Nodes that make a control image from any image: edges, depth, poses. A finished control image passes through."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..images.pixels import unused_alpha
from ..library.controlnets import preprocessor
from ..loading.node_progress import NodeReporter
from ..preprocess.canny import canny_images
from ..preprocess.canny_filter import MOST
from ..preprocess.depth import depth_maps
from ..preprocess.pose import pose_images
from ..stages.latent import fitted_to_latent
from .schema.outputs import warnings_ui
from .schema.sockets import CATEGORY

PREPROCESS = f"{CATEGORY}/control images"
DEPTH_MODEL, POSE_MODEL, PERSON_MODEL = "depth-anything-v2-small", "vitpose-base", "rt-detr"


def image_input() -> io.Image.Input:
    """The source image."""
    return io.Image.Input("image", tooltip="Any image, or a finished control image with preprocess off.")


def preprocess_input() -> io.Boolean.Input:
    """Whether the image is a source image or a finished control image."""
    return io.Boolean.Input(
        "preprocess",
        default=True,
        tooltip="On: make a control image from the image. Off: the image already is a control image.",
    )


def latent_input() -> io.Latent.Input:
    """The size of the result."""
    return io.Latent.Input(
        "latent",
        optional=True,
        tooltip=(
            "Sets the size of the result: the image is first cropped around its centre to the latent's shape, then "
            "resized. If it has the proportions of the image that is redrawn, the two stay aligned."
        ),
    )


def control_output(tooltip: str) -> io.Image.Output:
    """The control image."""
    return io.Image.Output("control_image", display_name="control image", tooltip=tooltip)


def score_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    """A confidence between 0 and 1."""
    return io.Float.Input(name, default=default, min=0.01, max=0.99, step=0.01, round=0.001, tooltip=tooltip)


def threshold_input(name: str, default: int, tooltip: str) -> io.Int.Input:
    """A gradient of 8-bit pixels."""
    return io.Int.Input(name, default=default, min=1, max=MOST, tooltip=tooltip)


class CannyEdges(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxCannyEdges",
            display_name="Canny Edges",
            category=PREPROCESS,
            description="Finds edges as OpenCV's Canny does, in colour: white on black, for a canny ControlNet.",
            inputs=[
                image_input(),
                preprocess_input(),
                threshold_input("low_threshold", 100, "Edges weaker than this are dropped."),
                threshold_input(
                    "high_threshold", 200, "Edges stronger than this are kept, along with weaker edges that touch them."
                ),
                latent_input(),
            ],
            outputs=[control_output("The edges.")],
            hidden=[io.Hidden.prompt],
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
        ui = warnings_ui(cls, unused_alpha(image))
        if not preprocess:
            return io.NodeOutput(control_image, ui=ui)
        return io.NodeOutput(canny_images(control_image, low_threshold, high_threshold), ui=ui)


class DepthMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxDepthMap",
            display_name="Depth Map",
            category=PREPROCESS,
            description="Estimates depth with Depth Anything V2 Small, for a depth ControlNet. White is near.",
            inputs=[image_input(), preprocess_input(), latent_input()],
            outputs=[control_output("The depth map.")],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, preprocess: bool, latent: dict[str, Any] | None = None) -> io.NodeOutput:
        control_image = fitted_to_latent(image, latent)
        ui = warnings_ui(cls, unused_alpha(image))
        if not preprocess:
            return io.NodeOutput(control_image, ui=ui)
        return io.NodeOutput(depth_maps(control_image, preprocessor(DEPTH_MODEL, NodeReporter())), ui=ui)


class PoseSkeleton(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxPoseSkeleton",
            display_name="Pose Skeleton",
            category=PREPROCESS,
            description="Finds people and draws their OpenPose skeletons, for a pose ControlNet. Uses ViTPose.",
            inputs=[
                image_input(),
                preprocess_input(),
                score_input("person_score", 0.5, "Minimum confidence that a detection is a person."),
                score_input("joint_score", 0.3, "Minimum confidence for a joint to be drawn."),
                latent_input(),
            ],
            outputs=[control_output("The skeletons.")],
            hidden=[io.Hidden.prompt],
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
        ui = warnings_ui(cls, unused_alpha(image))
        if not preprocess:
            return io.NodeOutput(control_image, ui=ui)
        reporter = NodeReporter()
        detector, poser = preprocessor(PERSON_MODEL, reporter), preprocessor(POSE_MODEL, reporter)
        return io.NodeOutput(pose_images(control_image, detector, poser, person_score, joint_score), ui=ui)
