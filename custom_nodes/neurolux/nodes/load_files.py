"""Load Model Files: a model from single weight files in ComfyUI's own folders."""

from __future__ import annotations

from comfy_api.latest import io

from ..errors import InvalidParameter, WeightsMissing
from ..families.files.identify import single_file_families
from ..library.chosen_files import ChosenFiles, chosen_model, file_choices
from ..library.known_models import comfy_shelf, model_stamp
from ..library.local_models import MAIN_FOLDERS
from ..library.single_files import AUTO
from ..loading.node_progress import NodeReporter
from ..loading.store import load_handle
from .load import LOADERS, compile_input, loaded_output, offload_input, precision_input

NOTHING = "no file in models/diffusion_models or models/checkpoints"


class LoadModelFiles(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        shelf = comfy_shelf()
        encoders = [AUTO, *file_choices(shelf, "text_encoders", "checkpoints")]
        return io.Schema(
            node_id="NeuroLuxLoadModelFiles",
            display_name="Load Model Files",
            category=LOADERS,
            description="Loads FLUX or SDXL from single files in ComfyUI's folders: safetensors, fp8 or GGUF.",
            inputs=[
                io.Combo.Input(
                    "model_file",
                    options=file_choices(shelf, *MAIN_FOLDERS) or [NOTHING],
                    tooltip="A FLUX transformer, an SDXL UNet, or a checkpoint that contains every component.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=encoders,
                    default=AUTO,
                    tooltip="The CLIP-L text encoder. auto: the checkpoint's own, or else the first that fits.",
                ),
                io.Combo.Input(
                    "text_encoder_2",
                    options=encoders,
                    default=AUTO,
                    tooltip="T5 for FLUX, CLIP-G for SDXL. auto: the checkpoint's own, or else the first that fits.",
                ),
                io.Combo.Input(
                    "vae",
                    options=[AUTO, *file_choices(shelf, "vae", "checkpoints")],
                    default=AUTO,
                    tooltip="The VAE. auto: the checkpoint's own, or else the first that fits.",
                ),
                io.Combo.Input(
                    "family",
                    options=[AUTO, *single_file_families()],
                    default=AUTO,
                    tooltip="The model family. auto: detected from the file. Other choices reject other families.",
                ),
                precision_input(),
                offload_input(),
                compile_input(),
            ],
            outputs=[loaded_output()],
        )

    @classmethod
    def validate_inputs(cls, model_file: str, text_encoder: str, text_encoder_2: str, vae: str) -> bool:
        """Leave the file names to ``execute``: its errors list the files and name the folders for others."""
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        model_file: str | None = None,
        text_encoder: str = AUTO,
        text_encoder_2: str = AUTO,
        vae: str = AUTO,
        family: str = AUTO,
        **_: object,
    ) -> tuple[int, ...]:
        """What ComfyUI compares to run the node again: the files, including those that ``auto`` finds."""
        try:
            return model_stamp(chosen_model(ChosenFiles(model_file or "", text_encoder, text_encoder_2, vae, family)))
        except (WeightsMissing, InvalidParameter):
            return ()  # ``execute`` reports what is wrong

    @classmethod
    def execute(
        cls,
        model_file: str,
        text_encoder: str,
        text_encoder_2: str,
        vae: str,
        family: str,
        precision: str,
        offload: str,
        compile: bool = False,
    ) -> io.NodeOutput:
        model = chosen_model(ChosenFiles(model_file, text_encoder, text_encoder_2, vae, family))
        return io.NodeOutput(load_handle(model, model_stamp(model), 0, precision, offload, NodeReporter(), compile))
