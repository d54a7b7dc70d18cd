"""Many images in one run: Draw Batch (prompts and seeds) and Draw Grid (one prompt, two settings varied)."""

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
from .inputs import guidance_input, pipeline_input, seed_input, size_inputs, steps_input
from .sockets import CATEGORY
from .stages import told_ui

CAPTIONS_TOOLTIP = "Prompt and settings of each image, for the files: link it to Result's caption."


def drawing_inputs() -> list[io.Input]:
    """What a node that draws from texts takes beside them, as on Sample and Empty Latent."""
    return [
        steps_input(),
        guidance_input(),
        *size_inputs(),
        io.String.Input(
            "negative_prompt",
            multiline=True,
            default="",
            tooltip="What no image should show. Only models with real guidance use it (SDXL).",
        ),
    ]


class DrawBatch(io.ComfyNode):
    """Draw Batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxDrawBatch",
            display_name="Draw Batch",
            category=CATEGORY,
            description=(
                "Draws many prompts, many seeds, or both. An image that fails is left out with a warning; the others "
                "come. Each equals the single image with that prompt and seed."
            ),
            inputs=[
                pipeline_input(),
                io.String.Input(
                    "prompts", multiline=True, default="", tooltip="One prompt a line. Empty lines do not count."
                ),
                io.String.Input(
                    "seeds", default="0", tooltip="Numbers and ranges between commas, such as 1-4, 9. At least one."
                ),
                io.Combo.Input(
                    "combine",
                    options=list(COMBINE_CHOICES),
                    default=COMBINE_CHOICES[0],
                    tooltip="every: each prompt with each seed. pairs: the first with the first, and so on.",
                ),
                *drawing_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    "images", display_name="images", is_output_list=True, tooltip="The images, prompt by prompt."
                ),
                io.String.Output("captions", display_name="captions", is_output_list=True, tooltip=CAPTIONS_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, combine: str) -> bool:
        """Leave the choice to ``execute``: its error says which there are."""
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
        return io.NodeOutput(images, captions, ui=told_ui(gallery.warnings))


class DrawGrid(io.ComfyNode):
    """Draw Grid."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        settings = [*SETTINGS, NOT_USED]
        values = (
            "Its values, one a line or between commas. prompt: a part of the prompt, then what takes its place. seed, "
            "num_inference_steps: also ranges such as 1-4. size: such as 768 or 1024x768."
        )
        return io.Schema(
            node_id="NeuroLuxDrawGrid",
            display_name="Draw Grid",
            category=CATEGORY,
            description=(
                "Draws one prompt over a matrix of two settings, and a labelled contact sheet. An image that fails "
                "is left out with a warning, and the sheet says why."
            ),
            inputs=[
                pipeline_input(),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the images show."),
                io.Combo.Input(
                    "x_setting", options=settings, default="seed", tooltip="What differs from column to column."
                ),
                io.String.Input("x_values", multiline=True, default="1-4", tooltip=values),
                io.Combo.Input(
                    "y_setting",
                    options=settings,
                    default=NOT_USED,
                    tooltip="What differs from row to row. none: one row.",
                ),
                io.String.Input("y_values", multiline=True, default="", tooltip=values),
                seed_input("Of every image, unless a side of the grid varies it."),
                *drawing_inputs(),
            ],
            outputs=[
                io.Image.Output("sheet", display_name="sheet", tooltip="The contact sheet."),
                io.Image.Output(
                    "images", display_name="images", is_output_list=True, tooltip="The images alone, row by row."
                ),
                io.String.Output("captions", display_name="captions", is_output_list=True, tooltip=CAPTIONS_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, x_setting: str, y_setting: str) -> bool:
        """Leave the choices to ``execute``: its error says which there are."""
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
        return io.NodeOutput(sheet, images, captions, ui=told_ui(gallery.warnings))
