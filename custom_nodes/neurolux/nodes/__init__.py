"""The nodes, thin: each is a schema and one call into ``pipelines``."""

from __future__ import annotations

from comfy_api.latest import io

from .latent import EmptyLatent
from .load import LoadFlux, LoadModel, LoadSDXLLightning, WarmUp
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
