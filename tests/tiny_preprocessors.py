"""Tiny networks that make control images: the real classes of transformers, seeded random values, a few thousand.

As in tiny_models.py, nothing here imports ComfyUI or the node pack.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)

PERSON_SCORE = 0.7
"""What the tiny detector gives to every person that it sees; it sees them in every image."""
PERSONS = 2


def write_depth(folder: Path) -> Path:
    """Depth Anything V2."""
    torch.manual_seed(21)
    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 56, "width": 56},
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def write_pose(folder: Path) -> Path:
    """ViTPose for COCO's 17 keypoints."""
    torch.manual_seed(22)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        out_indices=[2],
    )  # fmt: skip
    module = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17))
    with torch.no_grad():  # heatmaps between 0 and 1, as trained ones have them
        module.head.conv.weight.mul_(20)
    module.save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder


def write_detector(folder: Path) -> Path:
    """RT-DETR, which takes every query for a person and scores it PERSON_SCORE."""
    torch.manual_seed(23)
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        d_model=16,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        decoder_layers=1,
        encoder_layers=1,
        num_queries=PERSONS,
        num_denoising=0,
        anchor_image_size=None,
        id2label={0: "person", 1: "bicycle"},
        label2id={"person": 0, "bicycle": 1},
    )
    module = RTDetrForObjectDetection(config)
    with torch.no_grad():
        for head in module.model.decoder.class_embed:
            head.weight.zero_()
            head.bias.copy_(torch.tensor([math.log(PERSON_SCORE / (1 - PERSON_SCORE)), -9.0]))
    module.save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


WRITERS = {"depth-anything-v2-small": write_depth, "vitpose-base": write_pose, "rt-detr": write_detector}
"""By the catalog's name."""


def write_preprocessors(root: Path) -> dict[str, Path]:
    """Each below ``root`` (ComfyUI's models/preprocessors)."""
    folders = {}
    for name, write in WRITERS.items():
        folders[name] = root / name
        if not (folders[name] / "config.json").is_file():
            write(folders[name])
    return folders
