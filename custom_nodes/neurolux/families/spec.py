"""What a model family is: one frozen record, and the records inside it. Every other room asks these.

A family's module exports one :class:`FamilySpec`. Nothing here or in a family's module imports torch, diffusers or
transformers when it is imported: plans are made without them, so functions that need them import them when called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..catalog.limits import Defaults, Limits
from ..catalog.models import Model, Purpose
from ..planning.records import FamilyCosts
from ..weights.file_kinds import Layout
from ..weights.headers import TensorInfo
from ..weights.stamps import Shapes
from .blocks import NO_BLOCKS, BlockLists

if TYPE_CHECKING:
    import torch

Task = Literal["text-to-image", "image-to-image", "inpaint", "fill", "edit", "video"]
"""What is asked for. ``fill`` is inpainting by a model that was trained for it, ``edit`` follows an instruction."""
ControlKind = Literal["plain", "union"]
"""A ControlNet for one kind of control image, or a union of several that must be told which one it gets."""
Config = Mapping[str, Any]
"""A module's configuration, as diffusers and transformers write it."""
Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Signature:
    """What a component is recognized by in a single file: the end of one tensor's name."""

    layout: Layout
    tensor: str
    beside: str | None = None
    """A tensor that must be there too, behind the same prefix: it tells the component from its relatives."""
    accepts: Callable[[TensorInfo, str], bool] = lambda info, prefix: True
    """Whether the tensor's shape and its prefix fit, where its name alone does not tell."""


@dataclass(frozen=True)
class Part:
    """One kind of component: its class, how its files are recognized and named, and how it can be split."""

    name: str
    title: str
    """For a reader: "FLUX transformer"."""
    empty: Callable[[Config, Path | None], Any]
    """The module without weights, from a configuration or from a folder that holds one."""
    config: Callable[[Shapes], dict[str, Any]]
    """The configuration by the shapes of its tensors, under the names of its class. Raises KeyError or IndexError
    where a tensor that the architecture has is missing."""
    signatures: tuple[Signature, ...] = ()
    renames: Mapping[Layout, Callable[[Tensors], Tensors]] = field(default_factory=dict)
    """From the names of a layout to those of its class; a layout that is not named needs no change."""
    blocks: BlockLists = NO_BLOCKS
    optional_prefix: str = ""
    """What some versions of its class put before every name and others do not."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Weights that are shared, by the name of the other one."""
    load_gguf: Callable[[Tensors, Config, torch.dtype], Any] | None = None
    """Its module from coded tensors that its layers decode when they are called; None: linear layers keep theirs."""


@dataclass(frozen=True)
class Component:
    """A part in a family's pipeline."""

    part: Part
    config: Config = field(default_factory=dict)
    """What the shapes do not tell, because it is the same for every model of the family."""

    def config_of(self, shapes: Shapes) -> dict[str, Any]:
        """The whole configuration of the component in a single file."""
        return {**self.part.config(shapes), **self.config}


@dataclass(frozen=True)
class PipelineClass:
    """A diffusers pipeline class by its name, and the mixins that it needs here."""

    name: str
    mixins: tuple[Callable[[], type], ...] = ()


@dataclass(frozen=True)
class Encoding:
    """How a prompt becomes tensors, and which of them ComfyUI's CONDITIONING carries in its own places."""

    encode: Callable[[Any, str, Any, int], dict[str, torch.Tensor]]
    """(pipeline, text, device, most tokens) -> the pipeline's arguments for one prompt, as many as it likes."""
    width: str
    """The denoiser's configuration value that says how wide the embeddings are."""
    main: str = "prompt_embeds"
    """The embeddings (1, tokens, width): the first part of a CONDITIONING, which stock nodes average and join."""
    pooled: str | None = None
    """The pooled ones (1, width): ``pooled_output`` of a CONDITIONING; None for a family without."""


@dataclass(frozen=True)
class LatentSpace:
    """The geometry of a family's latents, and their ways to and from the VAE's own space."""

    to_raw: Callable[[Config, torch.Tensor], torch.Tensor]
    """(the VAE's configuration, the denoiser's latents) -> what the VAE decodes, which is what a LATENT holds."""
    from_raw: Callable[[Config, torch.Tensor], torch.Tensor]
    comfy_format: str
    """Its class in ComfyUI's ``latent_formats``, for previews."""
    channels: int
    scale: int = 8
    """Pixels to a latent pixel, on each side."""
    unpack: Callable[[Any, torch.Tensor, int, int], torch.Tensor] = lambda pipe, latents, height, width: latents
    """(pipeline, latents as the denoiser has them, pixels) -> (1, C, h, w)."""
    upcasts_encoder: bool = False
    """Whether diffusers computes the VAE's encoder in fp32 where its configuration says ``force_upcast``."""


@dataclass(frozen=True)
class Scheduler:
    """A scheduler by its diffusers class and configuration."""

    class_name: str
    config: Config


@dataclass(frozen=True)
class ModelFacts:
    """What a model's own files say of it."""

    defaults: Defaults
    limits: Limits
    max_sequence_length: int
    purpose: Purpose = "any"


@dataclass(frozen=True)
class SingleFiles:
    """Models in single weight files: which ones to prefer, and what they turn out to be."""

    preferred: Mapping[str, tuple[str, ...]]
    """Names to take first where several files fit, by component; ``checkpoint``: files that hold all."""
    examples: Mapping[str, str]
    """Files that are known to fit, by component, for who looks for one."""
    facts: Callable[[Mapping[str, Config]], ModelFacts]
    """By the configurations of the components."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """ComfyUI's folder for a component, where it is not the usual one."""
    only_by_name: frozenset[str] = frozenset()
    """Components whose shapes are another family's too, so that only a preferred name tells."""
    steps_of: Callable[[str], int | None] = lambda name: None
    """The number of steps that a file's name says it was distilled for."""
    distilled: Callable[[Model, int], Model] = lambda model, steps: model
    """A model as one that was distilled for that number of steps."""
    example_for: Callable[[str, str], str | None] = lambda model, component: None
    """(a catalog model, a component) -> its own file's published name, where it has one."""


@dataclass(frozen=True)
class Detected:
    """What a LoRA's or a ControlNet's file was made for."""

    family: str | None
    """A family's name, that of one which the pack does not run, or None where the file does not tell."""
    problem: str | None = None
    """Why the file cannot be used with any model, where that is so."""


@dataclass(frozen=True)
class Loras:
    """LoRA files of a family."""

    detect: Callable[[Shapes], Detected | None]
    """None for a file of another family."""
    state_arguments: Callable[[Any], dict[str, Any]] = lambda pipe: {}
    """What the pipeline's ``lora_state_dict`` needs beside the file."""
    check: Callable[[Any, Mapping[str, torch.Tensor]], None] = lambda denoiser, state: None
    """Raises ValueError for layers that diffusers would take by changing the denoiser that others share."""


@dataclass(frozen=True)
class Controls:
    """ControlNets of a family."""

    modes: Mapping[str, int]
    """Kinds of control images that a union ControlNet knows, by name."""
    blocks: BlockLists
    published: tuple[int, int, bool]
    """Of a ControlNet whose file is not at hand: how many blocks, values for the denoiser for 16x16 pixels, and whether
    it sees its image as a latent."""
    planned: Callable[[Shapes], tuple[int, bool]]
    """The last two by a file's shapes."""
    activations: Callable[[Any, int, int], int]
    """(module, width, height) -> values that it hands to the denoiser in each step."""
    architecture: Callable[[Any, Shapes], tuple[str, dict[str, Any]]]
    """(the denoiser, a file's shapes) -> diffusers class and configuration."""
    single_file: Callable[[Shapes], bool]
    """Whether the file has its authors' names, so that diffusers' ``from_single_file`` reads it."""
    widths: Callable[[Any], tuple[Any, ...]]
    """Of a denoiser or a ControlNet: what must be the same in both."""
    model_width: Callable[[Any], int]
    """Of a denoiser: what tells ControlNets of one model from those of another."""
    file_width: Callable[[Shapes], int | None]
    folder_width: Callable[[Config], int | None]
    """The same of a ControlNet's file, and of a diffusers folder by its configuration."""
    combined: Callable[[ControlKind, list[Any]], Any]
    """One module of several."""
    conflict: Callable[[Any, Any], str | None]
    """Why two modules cannot act together, where that is so."""
    image_argument: Callable[[ControlKind, Task], str]
    """What the pipeline calls the control images."""
    passes_mode: Callable[[ControlKind], bool]
    """Whether the pipeline is told the mode."""
    mode_count: Callable[[Config], int]
    """How many kinds a union ControlNet of that configuration knows."""
    encodes_images: bool = False
    """Whether the pipeline encodes control images with the VAE, unless the ControlNet reads pixels."""


@dataclass(frozen=True)
class TrainingBatch:
    """What the denoiser is shown in one step of a training, on the device."""

    latents: torch.Tensor
    """(B, C, h, w), as the denoiser takes them."""
    noise: torch.Tensor
    """(B, C, h, w)."""
    prompt: Mapping[str, torch.Tensor]
    """The encoder's tensors by name, (B, ...)."""
    originals: Sequence[tuple[int, int]]
    """Width and height of each image as it was given."""
    crops: Sequence[tuple[int, int]]
    """Left and top of each cut."""
    side: int
    """Of the square that is trained on, in pixels."""
    generator: torch.Generator
    """All chance is drawn from it, on the CPU."""


@dataclass(frozen=True)
class TrainingFormula:
    """How a LoRA is trained."""

    architecture: str
    """As Stability's ModelSpec names it, which model browsers read."""
    targets: tuple[str, ...]
    """The attention projections that get a LoRA, by the ends of their names."""
    scheduler: Callable[[Config], Any]
    """From the configuration of the pipeline's own one."""
    compare: Callable[[Any, Any, TrainingBatch], tuple[torch.Tensor, torch.Tensor]]
    """(denoiser, scheduler, batch) -> what the denoiser predicts, and what it should."""
    kept_values: Callable[[Config, int, int], float]
    """(the denoiser's configuration, side in pixels, tokens) -> values of one image that stay for the backward pass."""
    prediction_type: Callable[[Config], str | None] = lambda config: None
    """What the denoiser predicts by the scheduler's configuration; None where there is no choice."""


@dataclass(frozen=True)
class LoaderNode:
    """A loader of the family's own in the editor."""

    node_id: str
    title: str
    description: str
    steps: tuple[str, ...] = ()
    """Numbers of steps to choose a checkpoint from; empty: no such choice."""
    default_steps: str = ""


@dataclass(frozen=True)
class FamilySpec:
    """Everything that differs between one family of models and the others."""

    name: str
    title: str
    components: Mapping[str, Component]
    """By their names in the pipeline."""
    denoiser: str
    """The component that denoises."""
    costs: FamilyCosts
    pipelines: Mapping[tuple[Task, ControlKind | None], PipelineClass]
    """By what is asked for, and by the kind of ControlNets (None: without)."""
    encoding: Encoding
    latent: LatentSpace
    folders: Mapping[str, Callable[[Callable[[str], dict[str, Any]]], ModelFacts | None]]
    """By the pipeline class that a diffusers folder names: (reads a JSON file of the folder) -> its facts; None for a
    relative that the pack does not run."""
    running_steps: Callable[[int, float], int]
    """(steps, strength) -> how many of the steps are run: the pipelines' own ``get_timesteps``."""
    pipeline_options: Callable[[Config], dict[str, Any]] = lambda index: {}
    """(``model_index.json``, empty for single files) -> what the pipeline's class needs beside its components."""
    misfits: Callable[[Mapping[str, Config]], Iterator[tuple[str, int, int, str]]] = lambda configs: iter(())
    """What must agree between the components' configurations: component, what it has, what is needed, and of what."""
    tokenizers: Callable[[int], dict[str, Any]] | None = None
    """(most tokens) -> tokenizers for single files, which bring none."""
    scheduler: Callable[[Mapping[str, Config]], Scheduler] | None = None
    """For single files, which name none."""
    single_files: SingleFiles | None = None
    """None where models of the family are read from diffusers folders only."""
    loras: Loras | None = None
    controls: Controls | None = None
    """None for a family that no ControlNet guides here."""
    detect_control: Callable[[Shapes], Detected | None] = lambda header: None
    """Of a ControlNet's single file; None for another family's."""
    control_folder: Callable[[Config], bool] = lambda config: False
    """Whether a ControlNet's diffusers folder of that configuration is the family's."""
    control_classes: tuple[str, ...] = ()
    """diffusers classes of ControlNets that can be used."""
    training: TrainingFormula | None = None
    """None for a family that no LoRA can be trained on here."""
    edit_pixels: int = 0
    """About how many pixels the pipeline scales an image to that it edits."""
    loader: LoaderNode | None = None

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The components that encode a prompt, in order."""
        return tuple(name for name in self.components if name.startswith("text_encoder"))
