"""The nodes, thin: each is a schema and one call into ``pipelines``."""

from __future__ import annotations

from comfy_api.latest import io

from .adapters import ApplyControlNet, ApplyLora, ApplyLoras
from .file_parameter import FileParameter
from .file_result import FileResult
from .images import EncodeImage, ExtendImage, ImageToEdit, PrepareMask, PutBack
from .latent import EmptyLatent
from .load import LoadFlux, LoadModel, LoadSDXLLightning, WarmUp
from .load_files import LoadModelFiles
from .many import DrawBatch, DrawGrid
from .parameters import (
    BooleanParameter,
    ChoiceParameter,
    ImageParameter,
    IntegerParameter,
    NumberParameter,
    SeedParameter,
    TextParameter,
)
from .preprocess import CannyEdges, DepthMap, PoseSkeleton
from .result import Result
from .stages import Decode, EncodePrompt, Sample
from .train import TrainingImages, TrainLora
from .upscale import RefineInTiles, UpscaleImage
from .video import ApplyMotion, SampleVideo, VideoResult

NODES: list[type[io.ComfyNode]] = [
    LoadModel,
    LoadFlux,
    LoadSDXLLightning,
    LoadModelFiles,
    ApplyLora,
    ApplyLoras,
    CannyEdges,
    DepthMap,
    PoseSkeleton,
    ApplyControlNet,
    EncodePrompt,
    EmptyLatent,
    PrepareMask,
    ExtendImage,
    EncodeImage,
    ImageToEdit,
    Sample,
    Decode,
    UpscaleImage,
    RefineInTiles,
    PutBack,
    DrawBatch,
    DrawGrid,
    ApplyMotion,
    SampleVideo,
    VideoResult,
    TextParameter,
    IntegerParameter,
    NumberParameter,
    SeedParameter,
    ChoiceParameter,
    BooleanParameter,
    ImageParameter,
    FileParameter,
    Result,
    FileResult,
    TrainingImages,
    TrainLora,
    WarmUp,
]
