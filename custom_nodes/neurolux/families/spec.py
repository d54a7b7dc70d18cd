"""The record that describes a model family, and the records inside it. Every other room uses these.

A family's module exports one :class:`FamilySpec`. Importing this module or a family's module does not import torch,
diffusers or transformers, because plans are made without them. Functions that need them import them when called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..catalog.limits import Defaults, Limits
from ..catalog.models import Model, Purpose
from ..planning.records import FamilyCosts
from ..weights.file_kinds import Layout, TensorInfo
from ..weights.stamps import Shapes
from .blocks import NO_BLOCKS, BlockLists

if TYPE_CHECKING:
    import torch


Task = Literal["text-to-image", "image-to-image", "inpaint", "fill", "edit", "video"]
"""What a request does. ``fill`` is inpainting by a model that was trained for it; ``edit`` follows an instruction."""
ControlKind = Literal["plain", "union"]
"""``plain``: a ControlNet for one kind of control image. ``union``: one for several kinds, selected by a mode."""
Make = Callable[[], Any]
"""Makes a module."""
Architecture = Mapping[str, Make]
"""The components of a model by name."""
Config = Mapping[str, Any]
"""The configuration of a module in the format of diffusers or transformers."""
Tensors = dict[str, "torch.Tensor"]
REFERENCE_LATENTS, REFERENCE_METHOD = "reference_latents", "reference_latents_method"
"""Where a CONDITIONING of ComfyUI carries what its model is to see, and how that is told apart: extras of families that
have ``references``."""


@dataclass(frozen=True)
class Signature:
    """Recognizes a component in a single file by the end of a tensor name."""

    layout: Layout
    tensor: str
    beside: tuple[str, ...] = ()
    """Other tensors that must exist with the same prefix. They distinguish the component from its relatives."""
    without: tuple[str, ...] = ()
    """Ends of names that no tensor of the file may have, because only those of relatives do."""
    accepts: Callable[[TensorInfo, str], bool] = lambda info, prefix: True
    """(tensor, prefix) -> whether they fit, for components that the name alone does not identify."""


@dataclass(frozen=True)
class Part:
    """One kind of component: its class, the signatures and tensor names of its files, and its blocks."""

    name: str
    title: str
    """The name in messages: "FLUX transformer"."""
    empty: Callable[[Config, Path | None], Any]
    """(configuration, folder with one or None) -> the module without weights."""
    config: Callable[[Shapes], dict[str, Any]]
    """(shapes of its tensors, under the names of its class) -> its configuration. Raises KeyError or IndexError if a
    tensor of the architecture is missing."""
    signatures: tuple[Signature, ...] = ()
    renames: Mapping[Layout, Callable[[Tensors], Tensors]] = field(default_factory=dict)
    """Renames tensors from a layout's names to those of its class. Layouts that are not listed need no change."""
    unread: tuple[str, ...] = ()
    """Beginnings of the names of tensors that files have and the pack has no use for."""
    blocks: BlockLists = NO_BLOCKS
    optional_prefix: str = ""
    """A prefix that some versions of its class add to every tensor name."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Tied weights: each name with the weight that it is tied to."""
    full_precision: tuple[str, ...] = ()
    """Names of modules, at any depth, whose weights diffusers keeps in fp32 in every precision."""
    load_gguf: Callable[[Tensors, Config, torch.dtype], Any] | None = None
    """(GGUF tensors, configuration, compute type) -> the module, whose layers decode their weights in each call. None
    to use the pack's own linear layers for GGUF."""


@dataclass(frozen=True)
class Component:
    """A part in a family's pipeline."""

    part: Part
    config: Config = field(default_factory=dict)
    """Values that do not follow from the shapes, because they are the same for every model of the family."""

    def config_of(self, shapes: Shapes) -> dict[str, Any]:
        """The complete configuration of the component in a single file."""
        return {**self.part.config(shapes), **self.config}


@dataclass(frozen=True)
class PipelineClass:
    """The name of a diffusers pipeline class, and the mixins that the pack adds."""

    name: str
    mixins: tuple[Callable[[], type], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    """Arguments of every call, by name."""


@dataclass(frozen=True)
class Encoding:
    """How a prompt becomes tensors, and which of them go into the standard fields of ComfyUI's CONDITIONING."""

    encode: Callable[[Any, str, Any, int], dict[str, torch.Tensor]]
    """(pipeline, text, device, maximum tokens) -> the pipeline's arguments for one prompt, by name."""
    width: str
    """The key in the denoiser's configuration with the width of the embeddings."""
    main: str = "prompt_embeds"
    """The embeddings (1, tokens, width): the first part of a CONDITIONING, which stock nodes average and join."""
    pooled: str | None = None
    """The pooled embeddings (1, width): ``pooled_output`` of a CONDITIONING; None if the family has none."""
    pooled_width: Callable[[Config], int | None] = lambda config: None
    """(configuration of the denoiser) -> the width of the pooled embeddings; None where nothing says it."""
    cross_attends: bool = False
    """Whether the denoiser only attends to the embeddings, so that repeating all of them changes nothing."""
    most_tokens: Callable[[Config], int | None] = lambda config: None
    """(configuration of the denoiser) -> how many embeddings it has positions for; None if their number is free."""
    weighs_tokens: bool = False
    """Whether each of the embeddings is that of a token of the first tokenizer, so that a prompt can have weights."""
    embeds_guidance: Callable[[Config], bool] = lambda config: False
    """(configuration of the denoiser) -> whether it reads the guidance as an embedding: ``guidance`` of a
    CONDITIONING."""
    no_negative: str = ""
    """The text that stands for an empty negative prompt, or for none."""
    listed: bool = False
    """Whether the pipeline takes a list of embeddings (tokens, width), one a prompt, which may differ in length."""
    template: Callable[[Any], str] = lambda tokenizer: ""
    """(tokenizer) -> what the encoder writes around every text. Its tokens count within the maximum."""
    like_diffusers: Callable[[Any, str, Any, int], dict[str, torch.Tensor]] | None = None
    """The same as ``encode``, with those faults of diffusers that ``encode`` mends; None if there are none."""
    extras: frozenset[str] = frozenset()
    """Other fields of a CONDITIONING that the family honours."""
    extra_arguments: Callable[[Mapping[str, Any], int, int], dict[str, Any]] = lambda extra, width, height: {}
    """(fields of a CONDITIONING, width and height of the image) -> the pipeline's arguments that follow from
    ``extras``."""


@dataclass(frozen=True)
class LatentSpace:
    """The geometry of a family's latents, and their conversion to and from the VAE's own space."""

    to_raw: Callable[[Config, torch.Tensor], torch.Tensor]
    """(configuration of the VAE, the denoiser's latents) -> what a LATENT holds: the input of ComfyUI's VAE."""
    from_raw: Callable[[Config, torch.Tensor], torch.Tensor]
    comfy_format: str
    """The class in ComfyUI's ``latent_formats``, for previews."""
    channels: int
    scale: int = 8
    """Pixels per latent pixel, along each side."""
    patch: int = 1
    """How many pixels of the VAE's own latents are one latent pixel, along each side."""
    to_vae: Callable[[Any, torch.Tensor], torch.Tensor] = lambda vae, latents: latents
    """(VAE, what a LATENT holds) -> its decoder's input. They differ where ComfyUI's VAE converts them itself."""
    from_vae: Callable[[Any, torch.Tensor], torch.Tensor] = lambda vae, samples: samples
    """(VAE, its encoder's output) -> what a LATENT holds."""
    unpack: Callable[[Any, torch.Tensor, int, int], torch.Tensor] = lambda pipe, latents, height, width: latents
    """(pipeline, the denoiser's latents, height and width in pixels) -> (1, C, h, w)."""
    upcasts_encoder: bool = False
    """Whether diffusers runs the VAE's encoder in fp32 if its configuration has ``force_upcast``."""

    def channels_with(self, vae: Any) -> int:
        """The channels of a LATENT for this VAE, which may be smaller than the family's usual one."""
        return vae.config.latent_channels * self.patch**2


@dataclass(frozen=True)
class Scheduler:
    """The diffusers class name and the configuration of a scheduler."""

    class_name: str
    config: Config


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that follow from its own files."""

    defaults: Defaults
    limits: Limits
    max_sequence_length: int
    purpose: Purpose = "any"


@dataclass(frozen=True)
class SingleFiles:
    """How to load the family's models from single weight files."""

    preferred: Mapping[str, tuple[str, ...]]
    """Name patterns to prefer if several files fit, by component. ``checkpoint``: files with all components."""
    examples: Mapping[str, str]
    """The name of a published file for each component, for messages."""
    facts: Callable[[Mapping[str, Config]], ModelFacts]
    """(configurations of the components) -> the facts about the model."""
    fills: Callable[[Config], bool] = lambda config: False
    """(configuration of the denoiser) -> whether it also takes a masked image and its mask, and only fills."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """ComfyUI's folder for a component, if it is not the usual one."""
    only_by_name: frozenset[str] = frozenset()
    """Components with the same shapes as in another family, so only a preferred name identifies their files."""
    foreign: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name patterns, in lower case, of another family's files with the same shapes, by component: never taken unless
    chosen by name."""
    refused: Callable[[str], str | None] = lambda name: None
    """(name of a denoiser's file) -> what it is, if the tensors are the family's and the pack cannot run it."""
    steps_of: Callable[[str], int | None] = lambda name: None
    """(file name) -> the number of steps that the model was distilled for; None if the name has none."""
    distilled: Callable[[Model, int], Model] = lambda model, steps: model
    """(model, steps) -> the model with the settings of one that was distilled for this number of steps."""
    example_for: Callable[[str, str], str | None] = lambda model, component: None
    """(catalog model, component) -> the published name of its own file; None for the family's example."""


@dataclass(frozen=True)
class Detected:
    """The family that a LoRA or ControlNet file was made for."""

    family: str | None
    """The name of the family, which the pack may not support; None if unknown."""
    problem: str | None = None
    """Why the file cannot be used with any model; None if it can."""
    also: tuple[str, ...] = ()
    """Other families whose models have all of its layers as well."""
    certain: bool = False
    """Whether it has a layer that no other family has, while its other layers may look like a relative's."""


@dataclass(frozen=True)
class Loras:
    """How to handle LoRA files of the family."""

    detect: Callable[[Shapes], Detected | None]
    """(shapes in the file) -> what it was made for; None if it is for another family."""
    state_arguments: Callable[[Any], dict[str, Any]] = lambda pipe: {}
    """(pipeline) -> arguments of its ``lora_state_dict`` besides the file."""
    check: Callable[[Any, Mapping[str, torch.Tensor]], None] = lambda denoiser, state: None
    """Raises ValueError for layers that diffusers could only load by changing the shared denoiser."""
    original_names: Callable[[Any], Mapping[str, tuple[str, ...]]] = lambda denoiser: {}
    """(denoiser) -> its authors' name of each layer, with the layers of diffusers' denoiser that it joins by rows."""
    swapped: tuple[str, ...] = ()
    """The layer whose two halves of rows diffusers has in the other order."""
    distills: bool = False
    """Whether a LoRA makes a distilled model of the one that it is applied to, if its name has a number of steps."""
    widens: str = ""
    """The layer for which a file may have fewer inputs than the model, whose further inputs it then ignores."""


@dataclass(frozen=True)
class Controls:
    """How to handle ControlNets of the family."""

    modes: Mapping[str, int]
    """The mode numbers of a union ControlNet, by kind of control image."""
    blocks: BlockLists
    published: tuple[int, int, bool]
    """For a ControlNet whose file is not on this machine: number of blocks, values for the denoiser per 16x16 pixels,
    and whether its control image is encoded to a latent."""
    planned: Callable[[Shapes], tuple[int, bool]]
    """(shapes in the file) -> the last two of these."""
    activations: Callable[[Any, int, int], int]
    """(module, width, height) -> how many values it passes to the denoiser in each step."""
    architecture: Callable[[Any, Shapes], tuple[str, dict[str, Any]]]
    """(denoiser, shapes in the file) -> diffusers class and configuration."""
    single_file: Callable[[Shapes], bool]
    """Whether the file has the original tensor names, so diffusers' ``from_single_file`` must read it."""
    widths: Callable[[Any], tuple[Any, ...]]
    """(denoiser or ControlNet) -> values that must be equal in both."""
    model_width: Callable[[Any], int]
    """(denoiser) -> the width that distinguishes ControlNets for one model from those for another."""
    file_width: Callable[[Shapes], int | None]
    folder_width: Callable[[Config], int | None]
    """The same width of a ControlNet: from the shapes in its file, or from the configuration in its folder."""
    combined: Callable[[ControlKind, list[Any]], Any]
    """(kind, modules) -> one module that runs all of them."""
    conflict: Callable[[Any, Any], str | None]
    """Why two modules cannot work together; None if they can."""
    make: Callable[[Any], Any]
    """(denoiser) -> a plain ControlNet of the published size for it, without weights: what a dry run executes."""
    image_argument: Callable[[ControlKind, Task], str]
    """The name of the pipeline's argument for control images."""
    passes_mode: Callable[[ControlKind], bool]
    """Whether the pipeline takes the mode as an argument."""
    mode_count: Callable[[Config], int]
    """(configuration of a union ControlNet) -> the number of its modes."""
    encodes_images: bool = False
    """Whether the pipeline encodes control images with the VAE, unless the ControlNet reads pixels."""
    prepare: Callable[[Any], None] = lambda module: None
    """Changes a ControlNet that was just loaded, where diffusers' own class needs it."""


@dataclass(frozen=True)
class TrainingBatch:
    """The data of one training step, on the device."""

    latents: torch.Tensor
    """(B, C, h, w), in the denoiser's space."""
    noise: torch.Tensor
    """(B, C, h, w)."""
    prompt: Mapping[str, Sequence[torch.Tensor]]
    """The encoder's tensors by name, (1, ...), one an image: captions may differ in length."""
    originals: Sequence[tuple[int, int]]
    """Width and height of each original image."""
    crops: Sequence[tuple[int, int]]
    """Left and top of each crop."""
    side: int
    """Side of the square training images, in pixels."""
    generator: torch.Generator
    """The source of all random numbers, on the CPU."""


@dataclass(frozen=True)
class TrainingFormula:
    """How to train a LoRA."""

    architecture: str
    """The architecture name of Stability's ModelSpec, which model browsers read."""
    targets: tuple[str, ...]
    """The attention projections that get a LoRA, by the ends of their names."""
    scheduler: Callable[[Config], Any]
    """(configuration of the pipeline's scheduler) -> the scheduler for training."""
    compare: Callable[[Any, Any, TrainingBatch], tuple[torch.Tensor, torch.Tensor]]
    """(denoiser, scheduler, batch) -> the denoiser's prediction, and its target."""
    kept_values: Callable[[Config, int, int], float]
    """(configuration of the denoiser, side in pixels, tokens) -> values of one image kept for the backward pass."""
    prediction_type: Callable[[Config], str | None] = lambda config: None
    """(configuration of the scheduler) -> what the denoiser predicts; None if the family has no choice."""
    distilled_steps: int = 4
    """A model that takes so few steps by default was distilled from another one."""
    file_tensors: Callable[[Tensors], Tensors] = lambda layers: layers
    """(the LoRA's tensors by diffusers' names) -> those of its file, by names that other programs know as well."""


@dataclass(frozen=True)
class ReferenceLimits:
    """Which images an edit takes. Its pipeline takes any number of them, and has ``reference_latents``: those that come
    last, (1, C, h, w) in the denoiser's space."""

    least_side: int
    """In pixels."""
    widest: int
    """The longer side in shorter ones."""


@dataclass(frozen=True)
class LoaderNode:
    """The family's own loader node in the editor."""

    node_id: str
    title: str
    description: str


@dataclass(frozen=True)
class FamilySpec:
    """Everything that differs between families of models."""

    name: str
    title: str
    components: Mapping[str, Component]
    """Components by their names in the pipeline."""
    denoiser: str
    """The name of the component that denoises."""
    costs: FamilyCosts
    pipelines: Mapping[tuple[Task, ControlKind | None], PipelineClass]
    """Pipeline classes by task and by kind of ControlNet (None for no ControlNet)."""
    encoding: Encoding
    latent: LatentSpace
    folders: Mapping[str, Callable[[Callable[[str], dict[str, Any]]], ModelFacts | None]]
    """By the pipeline class in a diffusers folder: (function that reads a JSON file of the folder) -> the facts about
    the model; None for a relative that the pack does not support."""
    running_steps: Callable[[int, float], int]
    """(steps, strength) -> how many of the steps run, as in the pipelines' own ``get_timesteps``."""
    guidance: Callable[[float], float] = lambda usual: usual
    """(guidance as users write it: the prediction without the prompt, plus so many times the difference) -> the
    pipeline's own."""
    guidance_argument: str = "guidance_scale"
    """The name of the pipeline's argument for it."""
    pipeline_options: Callable[[Config], dict[str, Any]] = lambda index: {}
    """(``model_index.json``, empty for single files) -> arguments of the pipeline class besides its components."""
    misfits: Callable[[Mapping[str, Config]], Iterator[tuple[str, int, int, str]]] = lambda configs: iter(())
    """(configurations of the components) -> values that must match: component, its value, the required value, unit."""
    tokenizers: Callable[[int], dict[str, Any]] | None = None
    """(maximum tokens) -> tokenizers for single files, which contain none."""
    scheduler: Callable[[Mapping[str, Config]], Scheduler] | None = None
    """(configurations of the components) -> the scheduler for single files, which specify none."""
    trained_for: Callable[[Mapping[str, Any], Mapping[str, str]], Config] = lambda names, metadata: {}
    """(names of all tensors in the denoiser's single file, its metadata) -> the settings of the scheduler that they
    state. Raises ValueError, which names it, for a training that the pack cannot sample."""
    single_files: SingleFiles | None = None
    """None if models of the family can only be loaded from diffusers folders."""
    loras: Loras | None = None
    controls: Controls | None = None
    """None if the pack supports no ControlNets for the family."""
    detect_control: Callable[[Shapes], Detected | None] = lambda header: None
    """(shapes in a ControlNet's single file) -> what it was made for; None if it is for another family."""
    control_folder: Callable[[Config], bool] = lambda config: False
    """(configuration in a ControlNet's diffusers folder) -> whether it was made for the family."""
    control_problem: Callable[[Config], str | None] = lambda config: None
    """(configuration in such a folder) -> why it cannot be used; None if it can."""
    control_classes: tuple[str, ...] = ()
    """The supported diffusers classes of ControlNets."""
    training: TrainingFormula | None = None
    """None if the pack cannot train LoRAs for the family."""
    edit_pixels: int = 0
    """About how many pixels the pipeline scales an image to before it edits it."""
    edits_parts: bool = False
    """Whether a model that edits also redraws a masked part (``inpaint``). It sees the whole image meanwhile, which its
    pipeline would scale to ``edit_pixels`` if it is larger."""
    references: ReferenceLimits | None = None
    """None if a model that edits sees only the image that it edits."""
    loader: LoaderNode | None = None
    architectures: Callable[[], Mapping[str, Architecture]] = dict
    """The catalog's models of the family at full size, by name, made without weights: what a dry run executes."""

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The components that encode a prompt, in order."""
        return tuple(name for name in self.components if name.startswith("text_encoder"))
