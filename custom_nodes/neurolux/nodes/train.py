"""Nodes that train a LoRA: the images to train on, and the training itself."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..adapters.borrow import borrow
from ..errors import InvalidParameter
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from ..training.image_files import FIELD
from ..training.image_set import TrainingSet, read_training_set
from ..training.lora import (
    check_handle,
    check_samples,
    draw_samples,
    drawing_steps,
    text_for_samples,
    train_lora,
    with_trained,
)
from ..training.loss_curve import draw_loss_curve
from ..training.progress import TrainingProgress
from ..training.settings import (
    HIGHEST_RATE,
    MOST_BATCH,
    MOST_RANK,
    MOST_SAMPLES,
    MOST_STEPS,
    LoraSettings,
    check_settings,
)
from .inputs import pipeline_input, seed_input, side_input
from .outputs import pipeline_output, stage_warnings_ui
from .sockets import CATEGORY, AnyComboOutput, FileType

TRAINING = f"{CATEGORY}/training"
CHECKPOINTS = ("neurolux", "training")
"""Below ComfyUI's user folder."""
TrainingSetType = io.Custom("NEUROLUX_TRAINING_IMAGES")
"""A TrainingSet."""


def find_source(source: str) -> Path:
    """The zip or folder that ``source`` names: in ComfyUI's input folder, or an absolute path into one of its folders.

    Raises InvalidParameter if it is elsewhere or does not exist.
    """
    inputs = Path(folder_paths.get_input_directory()).resolve()
    own = [inputs, *(Path(folder).resolve() for folder in (folder_paths.get_output_directory(), temp_folder()))]
    path = (inputs / source).resolve()
    if not source.strip() or not any(path.is_relative_to(folder) for folder in own):
        raise InvalidParameter(FIELD, f"{FIELD} {source!r} is not in ComfyUI's input folder; put the images there")
    if not path.exists():
        raise InvalidParameter(FIELD, f"there is no zip or folder {source!r} in ComfyUI's input folder")
    return path


def temp_folder() -> str:
    """ComfyUI's folder for temporary files."""
    return folder_paths.get_temp_directory()


class TrainingImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxTrainingImages",
            display_name="Training Images",
            category=TRAINING,
            description=(
                "The images to train on: PNG, JPEG or WebP files in a zip or a folder. Captions come from a text file "
                "beside each image (cat.txt for cat.png) or from a metadata.jsonl."
            ),
            inputs=[
                io.String.Input(
                    "source",
                    default="",
                    tooltip="A zip or a folder in ComfyUI's input folder, or a linked File Parameter.",
                )
            ],
            outputs=[
                TrainingSetType.Output("images", display_name="images", tooltip="The images with their captions.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str | None = None, **_: object) -> str:
        """Read the images again if the zip, or a file in the folder, has changed."""
        try:
            path = find_source(source or "")
        except InvalidParameter:
            return ""
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        stats = [(str(file), file.lstat().st_mtime_ns, file.lstat().st_size) for file in files]
        return hashlib.sha256(repr(stats).encode()).hexdigest()

    @classmethod
    def execute(cls, source: str) -> io.NodeOutput:
        path = find_source(source)
        images = read_training_set(path.name, path)
        warnings = images.warnings()
        return io.NodeOutput(images, ui={"warnings": warnings, "text": [images.summary(), *warnings]})


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxTrainLora",
            display_name="Train LoRA",
            category=TRAINING,
            description=(
                "Trains a LoRA on images of a subject or a style and saves it in models/loras. The model itself is "
                "not modified. An interrupted training can be resumed."
            ),
            inputs=[
                pipeline_input("The loaded model (FLUX or SDXL), with nothing applied to it."),
                TrainingSetType.Input("images", tooltip="The images to train on."),
                io.String.Input(
                    "name", default="my-lora", tooltip="File name of the LoRA. A number is appended if it is taken."
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip="The word that invokes what was learned. Prepended to every caption that lacks it.",
                ),
                io.Int.Input("steps", default=500, min=1, max=MOST_STEPS, tooltip="Number of training steps."),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=MOST_RANK,
                    tooltip="Capacity of the LoRA. 4 to 16 for a subject, more for a style.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=HIGHEST_RATE,
                    step=0.00001,
                    round=0.0000001,
                    tooltip="Size of each step. 0: a value that suits the model (0.0001 for large models).",
                ),
                io.Int.Input(
                    "batch",
                    default=1,
                    min=1,
                    max=MOST_BATCH,
                    tooltip="Images per step. More images make training steadier and slower.",
                ),
                side_input(
                    "resolution",
                    "Side of the square that images are cropped to, in pixels. 0: the model's default.",
                    most=4096,
                ),
                seed_input("The same seed, images and settings give the same file."),
                io.Boolean.Input(
                    "resume",
                    default=False,
                    tooltip="Continue an interrupted training of this name, if there is one. Off: start over.",
                ),
                io.String.Input(
                    "sample_prompt",
                    default="",
                    multiline=True,
                    tooltip="Prompt of the sample images. Empty: the trigger word, or the first caption.",
                ),
                io.Int.Input(
                    "samples",
                    default=1,
                    min=0,
                    max=MOST_SAMPLES,
                    tooltip="Number of sample images, each with and without the LoRA.",
                ),
            ],
            outputs=[
                pipeline_output("The pipeline with the new LoRA applied.", "trained"),
                AnyComboOutput("lora", display_name="lora", tooltip="Name of the LoRA in models/loras."),
                FileType.Output("file", display_name="file", tooltip="The LoRA file, for File Result."),
                io.Image.Output("loss_curve", display_name="loss curve", tooltip="Chart of the loss at every step."),
                io.Image.Output("sample_images", display_name="samples", tooltip="Sample images with the LoRA."),
                io.Image.Output("before", display_name="before", tooltip="The same images without the LoRA."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        images: TrainingSet,
        name: str,
        trigger: str,
        steps: int,
        rank: int,
        learning_rate: float,
        batch: int,
        resolution: int,
        seed: int,
        resume: bool,
        sample_prompt: str,
        samples: int,
    ) -> io.NodeOutput:
        check_handle(pipeline)
        check_samples(samples)
        settings = check_settings(
            pipeline.model,
            LoraSettings(name.strip(), steps, rank, learning_rate, batch, resolution, seed, " ".join(trigger.split())),
        )
        borrow(pipeline, NodeReporter())
        title = f"{settings.name} on {pipeline.model.name}"
        progress = TrainingProgress(title, settings.steps, 2 * samples * drawing_steps(pipeline))
        trained = train_lora(
            pipeline,
            images,
            settings,
            resume=resume,
            loras=Path(folder_paths.get_folder_paths("loras")[0]),
            checkpoints=Path(folder_paths.get_user_directory(), *CHECKPOINTS),
            progress=progress,
        )
        after, before = sample_both(pipeline, images, settings, trained.path, sample_prompt, samples, progress)
        curve = as_image(np.asarray(draw_loss_curve(trained.losses, title)))
        handle = with_trained(pipeline, trained.path)
        ui = stage_warnings_ui(borrow(pipeline), trained.warnings) or {}
        said = [f"{trained.path.name}: {settings.steps} steps, loss {trained.losses[-1]:.4f}"]
        return io.NodeOutput(
            handle,
            trained.path.name,
            trained.path,
            curve,
            after,
            before,
            ui={**ui, "text": [*said, *ui.get("text", [])]},
        )


def sample_both(
    pipeline: PipelineHandle,
    images: TrainingSet,
    settings: LoraSettings,
    lora: Path,
    prompt: str,
    count: int,
    progress: TrainingProgress,
) -> tuple[torch.Tensor | ExecutionBlocker, torch.Tensor | ExecutionBlocker]:
    """Images with the LoRA and without it. If ``count`` is 0, nothing that depends on them runs."""
    if not count:
        return ExecutionBlocker(None), ExecutionBlocker(None)
    text = text_for_samples(prompt, images, settings.trigger)
    made = []
    for handle, how in ((with_trained(pipeline, lora), "with"), (replace(pipeline), "without")):
        progress.phase(f"Sampling {count} images {how} the LoRA", long=True)
        made.append(draw_samples(handle, text, settings.seed, count, settings.side, progress))
    return made[0], made[1]


def as_image(pixels: np.ndarray) -> torch.Tensor:
    """An image (H, W, 3) of 8 bits a channel as ComfyUI's IMAGE."""
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None]
