"""The persons in an image as skeletons: a detector finds the persons, a second network finds their joints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InvalidParameter, WeightsMissing
from ..memory.out_of_memory import with_memory_errors
from .networks import REMEDY, ImageProgress, LoadedNetwork, acquire_network, at_work
from .pose_drawing import Joint, draw_poses, openpose_joints

PERSON = "person"
COCO_KEYPOINTS = 17


def pose_images(
    images: torch.Tensor, detector_folder: Path, pose_folder: Path, person_score: float, joint_score: float
) -> torch.Tensor:
    """Skeletons of the persons in each of ``images`` (B, H, W, 3) in [0, 1], on black, same shape, on the CPU.

    ``detector_folder``: a transformers object detector that knows persons (RT-DETR); ``pose_folder``: ViTPose for
    COCO's 17 keypoints. What scores less is left out. Raises InvalidParameter where there is nobody in an image.
    """
    from transformers import AutoModelForObjectDetection, VitPoseForPoseEstimation

    detector = acquire_network(detector_folder, AutoModelForObjectDetection)
    poser = acquire_network(pose_folder, VitPoseForPoseEstimation)
    progress = ImageProgress(images.shape[0])

    def work() -> torch.Tensor:
        with at_work([detector, poser]), torch.no_grad():
            return torch.stack([one(index, frame) for index, frame in enumerate(images)])

    def one(index: int, frame: torch.Tensor) -> torch.Tensor:
        progress.check()
        height, width = frame.shape[:2]
        image = frame[..., :3].clamp(0, 1).mul(255).round().to(torch.uint8).permute(2, 0, 1).cpu()
        boxes = find_persons(detector, image, person_score)
        if not len(boxes):
            which = f"image {index + 1}" if images.shape[0] > 1 else "the image"
            raise InvalidParameter(
                "control_image",
                f"no person was found in {which}; send one with a person, lower the score that a person needs, or send "
                "a ready pose image and set preprocess to false",
            )
        persons = [openpose_joints(joints) for joints in find_joints(poser, image, boxes, joint_score)]
        progress.step()
        return torch.from_numpy(np.asarray(draw_poses(persons, width, height), dtype=np.float32) / 255)

    return with_memory_errors("estimating poses", REMEDY, work)


def find_persons(detector: LoadedNetwork, image: torch.Tensor, score: float) -> np.ndarray:
    """Boxes (N, 4) of the persons in ``image`` (3, H, W): left, top, width, height in pixels."""
    labels = [number for number, name in detector.module.config.id2label.items() if name == PERSON]
    if not labels:
        raise WeightsMissing(f"{detector.folder} does not detect persons; delete it, and the right one is downloaded")
    inputs = detector.processor(images=image, return_tensors="pt").to(detector.patcher.load_device)
    outputs = detector.module(**inputs)
    sizes = torch.tensor([image.shape[1:]])
    (found,) = detector.processor.post_process_object_detection(outputs, threshold=score, target_sizes=sizes)
    boxes = found["boxes"][found["labels"] == labels[0]].float().cpu().numpy()
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def find_joints(poser: LoadedNetwork, image: torch.Tensor, boxes: np.ndarray, score: float) -> list[list[Joint]]:
    """COCO's 17 keypoints of the person in each box; one that scores less than ``score`` is None."""
    device = poser.patcher.load_device
    inputs = poser.processor(images=image, boxes=[boxes], return_tensors="pt").to(device)
    more: dict[str, Any] = {}
    if getattr(poser.module.config.backbone_config, "num_experts", 1) > 1:  # ViTPose++: its first expert is COCO's
        more["dataset_index"] = torch.zeros(len(boxes), dtype=torch.long, device=device)
    outputs = poser.module(**inputs, **more)
    (persons,) = poser.processor.post_process_pose_estimation(outputs, boxes=[boxes])
    found = []
    for person in persons:
        if len(person["scores"]) != COCO_KEYPOINTS:
            raise WeightsMissing(
                f"{poser.folder} finds {len(person['scores'])} joints and not COCO's {COCO_KEYPOINTS}; "
                "delete it, and the right one is downloaded"
            )
        pairs = zip(person["keypoints"].tolist(), person["scores"].tolist(), strict=True)
        found.append([(x, y) if value >= score else None for (x, y), value in pairs])
    return found
