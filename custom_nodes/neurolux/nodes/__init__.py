"""The nodes. Thin: each is a schema and one call into the other rooms."""

from __future__ import annotations

from comfy_api.latest import io

from .adapters import ApplyControlNet, ApplyLora, ApplyLoras
from .file_parameters import FileParameter
from .images import EncodeImage, ExtendImage, ImageToEdit, PrepareMask, PutBack
from .load import LoadModel, WarmUp, family_loaders
from .load_files import LoadModelFiles
from .load_image import LoadImage
from .many import GenerateBatch, GenerateGrid
from .parameters import ChoiceParameter, IntegerParameter, NumberParameter, TextParameter
from .preprocess import CannyEdges, DepthMap, PoseSkeleton
from .results import FileResult, Result, VideoResult
from .stages import Decode, EmptyLatent, EncodePrompt, Sample
from .train import TrainingImages, TrainLora
from .upscale import RefineInTiles, UpscaleImage
from .video import ApplyMotion, SampleVideo

NODES: list[type[io.ComfyNode]] = [
    LoadModel,
    *family_loaders(),
    LoadModelFiles,
    ApplyLora,
    ApplyLoras,
    CannyEdges,
    DepthMap,
    PoseSkeleton,
    ApplyControlNet,
    EncodePrompt,
    EmptyLatent,
    LoadImage,
    PrepareMask,
    ExtendImage,
    EncodeImage,
    ImageToEdit,
    Sample,
    Decode,
    UpscaleImage,
    RefineInTiles,
    PutBack,
    GenerateBatch,
    GenerateGrid,
    ApplyMotion,
    SampleVideo,
    VideoResult,
    TextParameter,
    IntegerParameter,
    NumberParameter,
    ChoiceParameter,
    FileParameter,
    Result,
    FileResult,
    TrainingImages,
    TrainLora,
    WarmUp,
]
