"""The nodes, thin: each is a schema and one call into ``pipelines``."""

from __future__ import annotations

from comfy_api.latest import io

from .adapters import ApplyControlNet, ApplyLora
from .latent import EmptyLatent
from .load import LoadFlux, LoadModel, LoadSDXLLightning, WarmUp
from .load_files import LoadModelFiles
from .parameters import (
    ChoiceParameter,
    ImageParameter,
    IntegerParameter,
    NumberParameter,
    SeedParameter,
    TextParameter,
)
from .result import Result
from .stages import Decode, EncodePrompt, Sample

NODES: list[type[io.ComfyNode]] = [
    LoadModel,
    LoadFlux,
    LoadSDXLLightning,
    LoadModelFiles,
    ApplyLora,
    ApplyControlNet,
    EncodePrompt,
    EmptyLatent,
    Sample,
    Decode,
    TextParameter,
    IntegerParameter,
    NumberParameter,
    SeedParameter,
    ChoiceParameter,
    ImageParameter,
    Result,
    WarmUp,
]
