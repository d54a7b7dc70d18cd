"""Load Model Files: a model from single weight files in ComfyUI's own folders."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..catalog.models import Model
from ..errors import InvalidParameter, WeightsMissing
from ..families.identify import family_of_file, identify, main_files, single_file_families
from ..families.spec import FamilySpec
from ..library.known_models import comfy_shelf, known_models, model_stamp
from ..library.single_files import AUTO, FOLDERS, Shelf, complete, files_model
from ..loading.node_progress import NodeReporter
from ..loading.store import load_handle
from ..weights.file_kinds import FileKind
from ..weights.headers import read_header
from .load import LOADERS, compile_input, loaded_output, offload_input, precision_input

MODEL_FOLDERS = ("diffusion_models", "checkpoints")
NOTHING = "no file in models/diffusion_models or models/checkpoints"


def listed(shelf: Shelf, *folders: str) -> list[str]:
    """The files of ``folders`` for a widget, as folder/file."""
    return [f"{folder}/{name}" for folder in folders for name in shelf.files(folder)]


def chosen_file(shelf: Shelf, name: str) -> Path:
    """The file that a widget's entry names. Raises WeightsMissing if there is none."""
    folder, _, file = name.partition("/")
    if folder not in FOLDERS.values() or not file:
        raise WeightsMissing(
            f"{name!r} names no file; write folder/file, such as diffusion_models/flux1-schnell.safetensors"
        )
    return shelf.path(folder, file)


def chosen_family(path: Path, wanted: str, kind: FileKind) -> FamilySpec:
    """The main file's family. Raises for another kind of file, or another family than the one ``wanted``."""
    found = family_of_file(kind)
    if found is None:
        raise WeightsMissing(
            f"{path.name} is a {kind.kind}; model_file needs one of: {main_files()}, or a checkpoint with one"
        )
    if wanted not in (AUTO, found.name):
        raise InvalidParameter("family", f"{path.name} is a {kind.kind}, and family is {wanted}; set it to {AUTO}")
    return found


def chosen_model(model_file: str, text_encoder: str, text_encoder_2: str, vae: str, family: str) -> Model:
    """The model that the widgets describe. Raises WeightsMissing or InvalidParameter, which name what to change."""
    shelf = comfy_shelf()
    main = chosen_file(shelf, model_file)
    found = chosen_family(main, family, identify(read_header(main)))
    chosen = {found.denoiser: main}
    for name, value in (("text_encoder", text_encoder), ("text_encoder_2", text_encoder_2), ("vae", vae)):
        if value == AUTO:
            continue
        path = chosen_file(shelf, value)
        kind, part = identify(read_header(path)), found.components[name].part
        if part.name not in kind.parts:
            raise WeightsMissing(
                f"{path.name} is a {kind.kind}; {name} needs a {part.title}: choose another file, or {AUTO}"
            )
        chosen[name] = path
    return files_model(found, complete(found, chosen, shelf), known_models())


class LoadModelFiles(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        shelf = comfy_shelf()
        encoders = [AUTO, *listed(shelf, "text_encoders", "checkpoints")]
        return io.Schema(
            node_id="NeuroLuxLoadModelFiles",
            display_name="Load Model Files",
            category=LOADERS,
            description="Loads FLUX or SDXL from single files in ComfyUI's folders: safetensors, fp8 or GGUF.",
            inputs=[
                io.Combo.Input(
                    "model_file",
                    options=listed(shelf, *MODEL_FOLDERS) or [NOTHING],
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
                    options=[AUTO, *listed(shelf, "vae", "checkpoints")],
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
            return model_stamp(chosen_model(model_file or "", text_encoder, text_encoder_2, vae, family))
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
        model = chosen_model(model_file, text_encoder, text_encoder_2, vae, family)
        return io.NodeOutput(load_handle(model, model_stamp(model), 0, precision, offload, NodeReporter(), compile))
