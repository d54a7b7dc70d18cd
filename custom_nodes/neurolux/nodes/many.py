"""Many images in one run: Generate Batch (prompts and seeds) and Generate Grid (one prompt, two settings varied)."""

from __future__ import annotations

from comfy_api.latest import io

from ..loading.handle import PipelineHandle
from ..stages.grid import make_grid, sheet_of, shots_of, title_of, to_images
from ..stages.many import Shot, generate_all
from ..stages.many_values import (
    COMBINE_CHOICES,
    NOT_USED,
    SETTINGS,
    combined,
    prompt_lines,
    read_axis,
    shortened,
    whole_numbers,
)
from .schema.inputs import guidance_input, pipeline_input, seed_input, size_inputs, steps_input
from .schema.outputs import warnings_ui
from .schema.sockets import CATEGORY

CAPTIONS_TOOLTIP = "Prompt and settings of each image. Link it to the caption of Result to write them into the files."


def sampling_inputs() -> list[io.Input]:
    """What a node that samples from text takes besides the prompt, as on Sample and Empty Latent."""
    return [
        steps_input(),
        guidance_input(),
        *size_inputs(),
        io.String.Input(
            "negative_prompt",
            multiline=True,
            default="",
            tooltip="What the images should not show. Only models with classifier-free guidance use it, such as SDXL.",
        ),
    ]


class GenerateBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxGenerateBatch",
            display_name="Generate Batch",
            category=CATEGORY,
            description=(
                "Generates images for many prompts, many seeds, or both. An image that fails is skipped with a "
                "warning. Each image equals the one that a single run with that prompt and seed generates."
            ),
            inputs=[
                pipeline_input(),
                io.String.Input(
                    "prompts", multiline=True, default="", tooltip="One prompt per line. Empty lines are ignored."
                ),
                io.String.Input(
                    "seeds", default="0", tooltip="Numbers and ranges, separated by commas: 1-4, 9. At least one."
                ),
                io.Combo.Input(
                    "combine",
                    options=list(COMBINE_CHOICES),
                    default=COMBINE_CHOICES[0],
                    tooltip="every: each prompt with each seed. pairs: first prompt with first seed, and so on.",
                ),
                *sampling_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    "images", display_name="images", is_output_list=True, tooltip="The images, prompt by prompt."
                ),
                io.String.Output("captions", display_name="captions", is_output_list=True, tooltip=CAPTIONS_TOOLTIP),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, combine: str) -> bool:
        """Leave the choice to ``execute``: its error lists the choices."""
        return True

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        prompts: str,
        seeds: str,
        combine: str,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        negative_prompt: str,
    ) -> io.NodeOutput:
        pairs = combined(prompt_lines(prompts), whole_numbers("seeds", seeds), combine)
        shots = [
            Shot(
                f"prompt {line.number} {shortened(line.text)!r}, seed {seed}",
                line.text, seed, negative_prompt, steps, guidance, width, height,
            )
            for line, seed in pairs
        ]  # fmt: skip
        gallery = generate_all(pipeline, shots)
        images, captions = [made.image for made in gallery.generated], [made.caption for made in gallery.generated]
        return io.NodeOutput(images, captions, ui=warnings_ui(cls, gallery.warnings))


class GenerateGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = [*SETTINGS, NOT_USED]
        values = (
            "The values, one per line or separated by commas. prompt: a part of the prompt, then its replacements. "
            "seed and num_inference_steps also take ranges such as 1-4. size: such as 768 or 1024x768."
        )
        return io.Schema(
            node_id="NeuroLuxGenerateGrid",
            display_name="Generate Grid",
            category=CATEGORY,
            description=(
                "Generates one prompt with every combination of two settings, and a labelled contact sheet. An image "
                "that fails is skipped with a warning, and the sheet shows the reason."
            ),
            inputs=[
                pipeline_input(),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the images show."),
                io.Combo.Input(
                    "x_setting", options=settings, default="seed", tooltip="What varies from column to column."
                ),
                io.String.Input("x_values", multiline=True, default="1-4", tooltip=values),
                io.Combo.Input(
                    "y_setting",
                    options=settings,
                    default=NOT_USED,
                    tooltip="What varies from row to row. none: a single row.",
                ),
                io.String.Input("y_values", multiline=True, default="", tooltip=values),
                seed_input("Seed of every image, unless the grid varies it."),
                *sampling_inputs(),
            ],
            outputs=[
                io.Image.Output("sheet", display_name="sheet", tooltip="The contact sheet."),
                io.Image.Output(
                    "images", display_name="images", is_output_list=True, tooltip="The individual images, row by row."
                ),
                io.String.Output("captions", display_name="captions", is_output_list=True, tooltip=CAPTIONS_TOOLTIP),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def validate_inputs(cls, x_setting: str, y_setting: str) -> bool:
        """Leave the choices to ``execute``: its error lists them."""
        return True

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        prompt: str,
        x_setting: str,
        x_values: str,
        y_setting: str,
        y_values: str,
        seed: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        negative_prompt: str,
    ) -> io.NodeOutput:
        base = Shot("", prompt, seed, negative_prompt, steps, guidance, width, height)
        grid = make_grid(read_axis("x", x_setting, x_values, prompt), read_axis("y", y_setting, y_values, prompt))
        gallery = generate_all(pipeline, shots_of(grid, base, pipeline.model))
        sheet = to_images(sheet_of(grid, gallery, title_of(grid, base, pipeline.model.name)))
        images, captions = [made.image for made in gallery.generated], [made.caption for made in gallery.generated]
        return io.NodeOutput(sheet, images, captions, ui=warnings_ui(cls, gallery.warnings))
