"""Nodes that train a LoRA: the images to train on, and the training itself."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..loading.handle import PipelineHandle
from ..training.image_set import TrainingSet, read_training_set
from ..training.run import run_training
from ..training.samples import MOST_SAMPLES, SampleSettings
from ..training.settings import HIGHEST_RATE, MOST_BATCH, MOST_RANK, MOST_STEPS, LoraSettings
from ..training.source import find_source, source_stamp
from .schema.inputs import pipeline_input, seed_input, side_input
from .schema.outputs import pipeline_output, warnings_ui
from .schema.sockets import CATEGORY, AnyComboOutput, FileType

TRAINING = f"{CATEGORY}/training"
TrainingSetType = io.Custom("NEUROLUX_TRAINING_IMAGES")
"""A TrainingSet."""


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
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str | None = None, **_: object) -> str:
        """Read the images again if the zip, or a file in the folder, has changed."""
        return source_stamp(source or "")

    @classmethod
    def execute(cls, source: str) -> io.NodeOutput:
        path = find_source(source)
        images = read_training_set(path.name, path)
        warnings = images.warnings()
        warnings_ui(cls, warnings)
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
                pipeline_input(
                    "The loaded model (FLUX.1, FLUX.2 klein, Z-Image, Qwen-Image or SDXL), with nothing applied to it."
                ),
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
        trigger = " ".join(trigger.split())
        settings = LoraSettings(name.strip(), steps, rank, learning_rate, batch, resolution, seed, trigger)
        made = run_training(pipeline, images, settings, SampleSettings(sample_prompt, samples), resume=resume)
        nothing = ExecutionBlocker(None)  # without sample images, nothing that depends on them runs
        after, before = made.samples or (nothing, nothing)
        warnings_ui(cls, made.warnings)
        ui = {"text": [made.summary, *made.warnings], **({"warnings": [*made.warnings]} if made.warnings else {})}
        return io.NodeOutput(made.pipeline, made.path.name, made.path, made.loss_curve, after, before, ui=ui)
