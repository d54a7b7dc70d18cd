"""How nodes are found and shown: words to search for, the Essentials tab, and inputs that are rarely changed.

Each of these is newer than the oldest ComfyUI that the pack runs on, which ignores them or does not know the field. So
they are given here, for all nodes alike, and not in the schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from comfy_api.latest import io

from ...families.registry import families

BASICS, IMAGE_TOOLS, VIDEO_TOOLS = "Basics", "Image Tools", "Video Tools"
MODELS = "*"
"""Among aliases: the names of the model families that the node works with."""
LOADING = ("precision", "offload", "compile")
NAMING = ("name", "filename_prefix")
PARAMETER = ("endpoint input", "api parameter", "mode")


@dataclass(frozen=True)
class Manners:
    """``aliases``: what else people type into the node search. ``advanced``: inputs that a person rarely changes.

    No input that a saved graph lists for its app is one: the editor's app view would show its name and no field.
    """

    aliases: tuple[str, ...]
    advanced: tuple[str, ...] = ()
    essentials: str | None = None


MANNERS: Mapping[str, Manners] = {
    "NeuroLuxLoadModel": Manners((MODELS, "checkpoint loader", "diffusers loader"), LOADING, BASICS),
    "NeuroLuxLoadModelFiles": Manners(
        (MODELS, "checkpoint loader", "unet loader", "gguf loader", "dual clip loader"),
        ("text_encoder", "text_encoder_2", "vae", "family", *LOADING),
    ),
    "NeuroLuxWarmUp": Manners(("preload", "load now")),
    "NeuroLuxEncodePrompt": Manners((MODELS, "clip text encode", "prompt", "conditioning"), essentials=BASICS),
    "NeuroLuxEmptyLatent": Manners((MODELS, "empty latent image", "image size", "width height"), essentials=BASICS),
    "NeuroLuxSample": Manners((MODELS, "ksampler", "sampler", "denoise"), essentials=BASICS),
    "NeuroLuxDecode": Manners(
        (
            MODELS,
            "vae decode",
        ),
        essentials=BASICS,
    ),
    "NeuroLuxLoadImage": Manners(("upload image", "optional image", "image input"), essentials=BASICS),
    "NeuroLuxEncodeImage": Manners(("vae encode", "image to image", "img2img", "inpaint")),
    "NeuroLuxImageToEdit": Manners(("kontext", "reference image", "image editing")),
    "NeuroLuxPrepareMask": Manners(
        ("feather mask", "invert mask", "inpaint mask"), ("transparency", "mask_transparency"), IMAGE_TOOLS
    ),
    "NeuroLuxExtendImage": Manners(("outpaint", "pad image"), essentials=IMAGE_TOOLS),
    "NeuroLuxPutBack": Manners(("composite masked", "paste back", "inpaint stitch")),
    "NeuroLuxApplyLora": Manners(("lora loader", "load lora"), essentials=BASICS),
    "NeuroLuxApplyLoras": Manners(("lora stack", "multiple loras")),
    "NeuroLuxApplyControlNet": Manners(("controlnet loader", "load controlnet")),
    "NeuroLuxCannyEdges": Manners(("canny", "edge detection", "controlnet preprocessor"), essentials=IMAGE_TOOLS),
    "NeuroLuxDepthMap": Manners(("depth anything", "controlnet preprocessor"), essentials=IMAGE_TOOLS),
    "NeuroLuxPoseSkeleton": Manners(
        ("openpose", "dwpose", "controlnet preprocessor"), ("person_score", "joint_score"), IMAGE_TOOLS
    ),
    "NeuroLuxUpscaleImage": Manners(("upscale model", "esrgan", "super resolution"), essentials=IMAGE_TOOLS),
    "NeuroLuxRefineInTiles": Manners(("ultimate upscale", "tiled upscale", "hires fix"), ("overlap",)),
    "NeuroLuxGenerateBatch": Manners(("many prompts", "prompt list", "seeds")),
    "NeuroLuxGenerateGrid": Manners(("xy plot", "contact sheet", "compare settings")),
    "NeuroLuxApplyMotion": Manners(("animatediff", "motion module", "motion adapter")),
    "NeuroLuxSampleVideo": Manners(("animatediff", "ksampler", "text to video"), essentials=VIDEO_TOOLS),
    "NeuroLuxResult": Manners(("save image", "endpoint output"), ("quality", *NAMING), BASICS),
    "NeuroLuxVideoResult": Manners(("save video", "save webp", "endpoint output"), NAMING, VIDEO_TOOLS),
    "NeuroLuxFileResult": Manners(("save file", "endpoint output"), NAMING),
    "NeuroLuxTextParameter": Manners(("string", *PARAMETER), ("description", "required", "max_length")),
    "NeuroLuxIntegerParameter": Manners(("int", *PARAMETER), ("step", "description")),
    "NeuroLuxNumberParameter": Manners(("float", *PARAMETER), ("step", "description")),
    "NeuroLuxChoiceParameter": Manners(("combo", *PARAMETER), ("description",)),
    "NeuroLuxFileParameter": Manners(("upload file", *PARAMETER), ("description", "accept")),
    "NeuroLuxTrainingImages": Manners(("dataset", "load image folder", "captions")),
    "NeuroLuxTrainLora": Manners(("lora training", "fine-tune", "dreambooth")),
}
"""By node. A loader of one family searches by its family and is like the loader of all."""


def with_manners(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node as the editor should show it."""

    def define_schema(_: type[io.ComfyNode]) -> io.Schema:
        return add_manners(node.define_schema())

    body = {"define_schema": classmethod(define_schema), "__module__": node.__module__, "__doc__": node.__doc__}
    return type(node.__name__, (node,), body)


def manners_of(node_id: str) -> Manners:
    """The manners of a node, with the names of families in place of ``MODELS``."""
    own = [family for family in families().values() if family.loader and family.loader.node_id == node_id]
    found = replace(MANNERS["NeuroLuxLoadModel"], essentials=None) if own else MANNERS[node_id]
    names = [family.name for family in own or families().values()]
    aliases = [word for alias in found.aliases for word in (names if alias == MODELS else [alias])]
    return replace(found, aliases=tuple(aliases))


def add_manners(schema: io.Schema) -> io.Schema:
    """Add what this ComfyUI knows of the node's manners. Raises ValueError where they name an input that it lacks."""
    manners = manners_of(schema.node_id)
    if unknown := set(manners.advanced) - {each.id for each in schema.inputs}:
        raise ValueError(f"{schema.node_id} has no input {', '.join(unknown)}")
    known = {field.name for field in fields(schema)}
    found = {"search_aliases": list(manners.aliases), "essentials_category": manners.essentials}
    for name, value in found.items():
        if name in known:
            setattr(schema, name, value)
    for each in schema.inputs:
        if each.id in manners.advanced:
            each.extra_dict["advanced"] = True
    return schema
