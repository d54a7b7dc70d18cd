"""Qwen-Image: blocks with separate weights for image and text, Qwen2.5-VL as the text encoder, and Wan's VAE.

Qwen-Image-2512 has the tensors of Qwen-Image and better weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog.limits import Defaults, GuidanceLimit, Limits
from ..catalog.models import Model, SchedulerChoice
from ..planning.records import FamilyCosts
from ..weights.stamps import Shapes
from .blocks import BlockLists
from .parts import qwen3, qwen25_vl, wan_vae
from .parts.double_stream import PROJECTIONS, inner_width, mask_alone, running_steps
from .parts.flow_matching import noised, training_scheduler
from .parts.shapes import USUAL_SIDE, children, numbered
from .spec import (
    Architecture,
    Component,
    Config,
    ControlKind,
    Controls,
    Detected,
    Encoding,
    FamilySpec,
    LatentSpace,
    Loras,
    ModelFacts,
    Part,
    PipelineClass,
    Scheduler,
    Signature,
    SingleFiles,
    TrainingBatch,
    TrainingFormula,
)

if TYPE_CHECKING:
    import torch


TOKENS, MOST_TOKENS = 512, 1024
"""Of a prompt: as many as the pipelines read by default, and at most."""
USUAL_TOKENS = 128
BYTES_PER_TOKEN = 44_100
"""Activations of a step per token and byte of the number format. A token is 16x16 pixels, or of text."""
ENCODE_VALUES = 205_000_000
"""Activations of Qwen2.5-VL's language model on 1058 tokens: the pipelines cut a prompt only after they encode it. The
outputs of all its layers are kept to the end."""
AFTER_PROMPT = "<|im_end|>\n<|im_start|>assistant\n"
"""What follows a prompt and counts as tokens of it. What comes before is dropped after encoding."""
NO_PROMPT = " "
"""The negative prompt of the authors' example, which has none: without any, diffusers applies no guidance."""
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
SCHEDULE: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "use_dynamic_shifting": True,
}
"""Settings of the scheduler in the published folders."""

LIGHTNING_SHIFT = math.log(3)
"""The shift of the Lightning models, at every size."""
LIGHTNING_NAME = re.compile(r"lightning.*?(?<!\d)([48])[-_ ]?steps?(?![a-z])", re.IGNORECASE)
EDIT_NAME = re.compile(r"edit", re.IGNORECASE)

# The transformer

BLOCKS = BlockLists(("transformer_blocks",))
MOST_TABLES = 16
"""Of positions that a transformer keeps: one for each size of an image, about 2 MB."""
MODULATION = "transformer_blocks.0.img_mod.1.weight"


def config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of QwenImageTransformer2DModel. Of a head's rotary axes, an eighth encodes the frame, and the rest
    is split between row and column."""
    width, packed = shapes["img_in.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    axis = head // 8
    return {
        "patch_size": 2,
        "in_channels": packed,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_layers": numbered(shapes, r"transformer_blocks\.(\d+)\."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": (axis, (head - axis) // 2, (head - axis) // 2),
    }


def empty(config: Config, folder: Path | None) -> Any:
    """The transformer without weights."""
    from diffusers import QwenImageTransformer2DModel

    made: Any = QwenImageTransformer2DModel.from_config(
        QwenImageTransformer2DModel.load_config(folder) if folder else config
    )
    made.pos_embed = own_tables()(theta=10000, axes_dim=list(made.config.axes_dims_rope), scale_rope=True)
    return made


@cache
def own_tables() -> type:
    """diffusers' rotary embedding, with tables that go when it goes.

    diffusers 0.42.1 keeps them, on their device, and the embedding in caches of the class (``lru_cache`` on methods).
    """
    from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

    class OwnTables(QwenEmbedRope):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self._tables: dict[tuple[Any, ...], Any] = {}

        def _get_device_freqs(self, device: torch.device) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
            return self._kept(QwenEmbedRope._get_device_freqs, device)

        def _compute_video_freqs(  # pyright: ignore[reportIncompatibleVariableOverride]
            self, frame: int, height: int, width: int, idx: int = 0, device: torch.device | None = None
        ) -> Any:
            return self._kept(QwenEmbedRope._compute_video_freqs, frame, height, width, idx, device)

        def _kept(self, make: Any, *key: Any) -> Any:
            place = (make.__name__, *key)
            if place not in self._tables:
                if len(self._tables) >= MOST_TABLES:
                    self._tables.clear()
                self._tables[place] = usable_in_training(make.__wrapped__(self, *key))
            return self._tables[place]

    return OwnTables


def usable_in_training(tables: Any) -> Any:
    """Copies of tensors that were made in inference mode, as nodes run: a backward pass cannot keep the originals."""
    import torch

    if isinstance(tables, tuple):
        return tuple(usable_in_training(table) for table in tables)
    with torch.inference_mode(False):
        return tables.clone()


TRANSFORMER = Part(
    name="qwen-image-transformer",
    title="Qwen-Image transformer",
    empty=empty,
    config=config,
    signatures=(Signature("diffusers", MODULATION, beside=("txt_norm.weight", "txt_in.weight", "img_in.weight")),),
    blocks=BLOCKS,
)

# Pipelines


def whole_prompts() -> type:
    """Mixin for prompts without padding, of which diffusers would warn that they have no mask."""

    class WholePrompts:
        def check_inputs(self, *args: Any, **given: Any) -> None:
            """diffusers' own check, told of a mask."""
            masks = {f"{name}_mask": given[name] for name in ("prompt_embeds", "negative_prompt_embeds")}
            super().check_inputs(*args, **{**given, **masks})  # pyright: ignore[reportAttributeAccessIssue]

    return WholePrompts


READS_ALL = (("max_sequence_length", MOST_TOKENS),)
"""Stock nodes join prompts. diffusers would cut them off at 512 tokens without a word."""


def encode(pipe: Any, text: str, device: Any, tokens: int) -> dict[str, torch.Tensor]:
    """Qwen2.5-VL's embeddings of the text and of what follows it, (1, tokens, width), without padding or mask.

    The same as ``QwenImagePipeline.encode_prompt``, which selects them by a mask: the device would have to report how
    many there are.
    """
    import torch

    dropped = pipe.prompt_template_encode_start_idx
    found = pipe.tokenizer(
        pipe.prompt_template_encode.format(text), max_length=pipe.tokenizer_max_length + dropped, truncation=True
    )
    states = pipe.text_encoder(
        input_ids=torch.tensor([found.input_ids], device=device),
        attention_mask=torch.tensor([found.attention_mask], device=device),
        output_hidden_states=True,
    ).hidden_states[-1]
    return {"prompt_embeds": states[:, dropped : dropped + tokens].clone()}


def unpack(pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Unpack tokens of 2x2 latent pixels to (1, C, h, w)."""
    return pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)[:, :, 0]


def misfits(configs: Mapping[str, Config]) -> Iterator[tuple[str, int, int, str]]:
    """Compare the text encoder and the VAE with the transformer."""
    main = configs["transformer"]
    if "text_encoder" in configs:
        yield (
            "text_encoder", qwen25_vl.text_width(configs["text_encoder"]), main["joint_attention_dim"], "features"
        )  # fmt: skip
    if "vae" in configs:
        yield "vae", configs["vae"]["z_dim"], main["out_channels"], "latent channels"


# Facts about a model, from its files


def facts(side: int) -> ModelFacts:
    """The guided model."""
    return ModelFacts(Defaults(side, side, 50, 4.0), Limits(negative_prompt=True), TOKENS)


def folder(read: Callable[[str], dict[str, Any]]) -> ModelFacts:
    """A diffusers folder."""
    return facts(USUAL_SIDE)


def refused(name: str) -> str | None:
    """A model with the same tensors that does something else, by its name: it would be sampled in vain."""
    return "model that edits images" if EDIT_NAME.search(name) else None


def lightning_steps(name: str) -> int | None:
    """The number of steps in the name of a Lightning model or of its LoRA; None for any other name."""
    match = LIGHTNING_NAME.search(name)
    return int(match[1]) if match else None


def lightning(model: Model, steps: int) -> Model:
    """``model`` as a Lightning model for ``steps``, without guidance, with the schedule of its authors' example."""
    return replace(
        model,
        defaults=replace(model.defaults, num_inference_steps=steps, guidance_scale=1.0),
        limits=replace(model.limits, guidance_scale=GuidanceLimit(0.0, 1.0), negative_prompt=False),
        scheduler=SchedulerChoice(
            SCHEDULER, {"base_shift": LIGHTNING_SHIFT, "max_shift": LIGHTNING_SHIFT, "shift_terminal": None}
        ),
    )


# LoRA files

OWN_LAYER = re.compile(r"img_mlp[._]net|txt_mlp[._]net|txt_mod[._]1\b|img_mod[._]1\b")
ATTENTION = re.compile(r"(?<!single[._])transformer_blocks[._](\d+)[._]attn[._]")
FLUX_BLOCKS, WIDTH = 19, 3072
"""Of FLUX.1, whose first blocks have the same names and the same width. Other models with as many are narrower."""


def detect_lora(header: Shapes) -> Detected | None:
    """Recognize a LoRA by its layers; one of the attention alone by the number of its blocks."""
    if any(OWN_LAYER.search(name) for name in header):
        return Detected("qwen-image", certain=True)
    found = ((ATTENTION.search(name), shape) for name, shape in header.items())
    deep = any(match and int(match[1]) >= FLUX_BLOCKS and WIDTH in shape for match, shape in found)
    return Detected("qwen-image", certain=True) if deep else None


# ControlNets

CONTROL_CLASS = "QwenImageControlNetModel"
CONTROL_LAYERS = 5
"""Of InstantX/Qwen-Image-ControlNet-Union."""
INPAINTING = "it also takes a masked image, which is not supported; use one without, such as InstantX's Union"
BLOCKWISE = (
    "it is one of DiffSynth's, which patch blocks of the model and which diffusers cannot read; use one in diffusers' "
    "layout, such as InstantX's Union"
)


def detect_control(header: Shapes) -> Detected | None:
    """Recognize a ControlNet for Qwen-Image, and those that cannot be used."""
    if "controlnet_blocks.0.y_rms.weight" in header:
        return Detected("qwen-image", BLOCKWISE)
    if not {"controlnet_x_embedder.weight", "img_in.weight", "txt_norm.weight"} <= header.keys():
        return None
    wider = header["controlnet_x_embedder.weight"][-1] > header["img_in.weight"][-1]
    return Detected("qwen-image", INPAINTING if wider else None)


def control_architecture(transformer: Any, header: Shapes) -> tuple[str, dict[str, Any]]:
    """The configuration: widths and depths from the shapes, the rest from the transformer."""
    width, channels = header["img_in.weight"]
    head = header["transformer_blocks.0.attn.norm_q.weight"][0]
    return CONTROL_CLASS, {
        "in_channels": channels,
        "out_channels": transformer.config.out_channels,
        "num_layers": children(header, "transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": header["txt_in.weight"][1],
        "axes_dims_rope": list(transformer.config.axes_dims_rope),
    }


def planned_control(header: Shapes) -> tuple[int, bool]:
    """Each layer passes on its output for every token, 16x16 pixels."""
    return children(header, "controlnet_blocks.") * header["img_in.weight"][0], True


def combined(kind: ControlKind, modules: list[Any]) -> Any:
    """diffusers' module for several images; it has one ControlNet for all of them."""
    from diffusers import QwenImageMultiControlNetModel

    return QwenImageMultiControlNetModel(modules[:1])


def conflict(first: Any, other: Any) -> str | None:
    """Why two ControlNets cannot work together; None if they can."""
    return None if first is other else "diffusers runs one Qwen-Image ControlNet at a time, for one or several images"


def make_control(transformer: Any) -> Any:
    """As InstantX's."""
    from diffusers import QwenImageControlNetModel

    kept = ("in_channels", "out_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
            "axes_dims_rope")  # fmt: skip
    made = QwenImageControlNetModel(**{name: transformer.config[name] for name in kept}, num_layers=CONTROL_LAYERS)
    prepare_control(made)
    return made


def prepare_control(module: Any) -> None:
    """Give it a rotary embedding of its own, as the transformer has: diffusers' keeps tables on the device for good."""
    module.pos_embed = own_tables()(theta=10000, axes_dim=list(module.config.axes_dims_rope), scale_rope=True)


CONTROLS = Controls(
    modes={},
    blocks=BLOCKS,
    published=(CONTROL_LAYERS, CONTROL_LAYERS * WIDTH, True),
    planned=planned_control,
    activations=lambda module, width, height: (
        len(module.controlnet_blocks) * module.inner_dim * (width // 16) * (height // 16)
    ),
    architecture=control_architecture,
    single_file=lambda header: False,
    widths=lambda module: (module.inner_dim, module.config.in_channels, module.config.joint_attention_dim),
    model_width=lambda denoiser: denoiser.inner_dim,
    file_width=lambda header: header["img_in.weight"][0] if "img_in.weight" in header else None,
    folder_width=inner_width,
    combined=combined,
    conflict=conflict,
    make=make_control,
    image_argument=lambda kind, task: "control_image",
    passes_mode=lambda kind: False,
    mode_count=lambda config: 0,
    encodes_images=True,
    prepare=prepare_control,
)

# Training

BLOCK_VALUES = 24.1
"""Values that a block keeps for the backward pass, per token and per unit of its width."""
LIGHTNING_STEPS = 8
"""At most, of a Lightning model."""


def compare(denoiser: Any, scheduler: Any, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict the velocity, like diffusers' examples/dreambooth/train_dreambooth_lora_qwen_image.py.

    Shorter captions are padded, and the padding is masked.
    """
    import torch
    from diffusers import QwenImagePipeline
    from torch.nn.utils.rnn import pad_sequence

    count, channels, height, width = batch.latents.shape
    noisy, times = noised(scheduler, batch)
    embeds = [one[0] for one in batch.prompt["prompt_embeds"]]
    lengths = torch.tensor([len(one) for one in embeds])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    predicted = denoiser(
        hidden_states=QwenImagePipeline._pack_latents(noisy, count, channels, height, width),
        timestep=times / 1000,
        encoder_hidden_states=pad_sequence(embeds, batch_first=True),
        encoder_hidden_states_mask=None if mask.all() else mask.to(noisy.device),
        img_shapes=[[(1, height // 2, width // 2)]] * count,
        return_dict=False,
    )[0]
    return predicted, QwenImagePipeline._pack_latents(batch.noise - batch.latents, count, channels, height, width)


def kept_values(config: Config, side: int, tokens: int) -> float:
    """The formula was counted on the real architecture at full width, on torch's meta device."""
    width = config["attention_head_dim"] * config["num_attention_heads"]
    return (side * side / 256 + tokens) * width * config["num_layers"] * BLOCK_VALUES


# The family


def step_operations(parameters: int, width: int, height: int) -> float:
    """Operations of a step: on each token a third of the weights, its own stream's, and attention."""
    tokens = width * height / 256 + USUAL_TOKENS
    return parameters * (0.67 * tokens + 3.6e-5 * tokens**2)


def architectures() -> Mapping[str, Architecture]:
    """The published models."""
    from .parts import architectures as parts

    made: Architecture = {
        "text_encoder": parts.qwen25_vl_7b,
        "transformer": lambda: empty({}, None),
        "vae": parts.qwen_image_vae,
    }
    return {"qwen-image-2512": made, "qwen-image": made}


FAMILY = FamilySpec(
    name="qwen-image",
    title="Qwen-Image",
    components={
        "text_encoder": Component(qwen25_vl.QWEN25_VL),
        "transformer": Component(TRANSFORMER),
        "vae": Component(wan_vae.WAN_VAE),
    },
    denoiser="transformer",
    costs=FamilyCosts(
        denoiser="transformer",
        sample_values=lambda width, height: (width * height / 256 + TOKENS) * BYTES_PER_TOKEN,
        step_operations=step_operations,
        compressible=frozenset({"transformer", "text_encoder"}),
        overflows_fp16=frozenset({"transformer", "text_encoder"}),  # ComfyUI issue 10751
        guides_at_once=False,
        encode_values=ENCODE_VALUES,
        vae=wan_vae.COSTS,
    ),
    pipelines={
        ("text-to-image", None): PipelineClass("QwenImagePipeline", (whole_prompts,), READS_ALL),
        ("image-to-image", None): PipelineClass("QwenImageImg2ImgPipeline", (whole_prompts,), READS_ALL),
        ("inpaint", None): PipelineClass("QwenImageInpaintPipeline", (mask_alone, whole_prompts), READS_ALL),
        ("text-to-image", "plain"): PipelineClass("QwenImageControlNetPipeline", (whole_prompts,), READS_ALL),
    },
    encoding=Encoding(
        encode,
        width="joint_attention_dim",
        most_tokens=lambda config: MOST_TOKENS,
        no_negative=NO_PROMPT,
        template=lambda tokenizer: AFTER_PROMPT,
    ),
    guidance_argument="true_cfg_scale",
    latent=LatentSpace(
        to_raw=wan_vae.to_raw,
        from_raw=wan_vae.from_raw,
        comfy_format="Wan21",
        channels=wan_vae.CHANNELS,
        unpack=unpack,
    ),
    folders={"QwenImagePipeline": folder},
    running_steps=running_steps,
    misfits=misfits,
    tokenizers=lambda tokens: {"tokenizer": qwen3.tokenizer()},
    scheduler=lambda configs: Scheduler(SCHEDULER, SCHEDULE),
    single_files=SingleFiles(
        preferred={"text_encoder": qwen25_vl.FILES, "vae": wan_vae.FILES},
        foreign={"text_encoder": qwen25_vl.TEXT_ONLY_FILES, "vae": wan_vae.WAN_FILES},
        examples={
            "transformer": "qwen_image_2512_fp8_e4m3fn.safetensors",
            "text_encoder": "qwen_2.5_vl_7b_fp8_scaled.safetensors",
            "vae": "qwen_image_vae.safetensors",
        },
        facts=lambda configs: facts(USUAL_SIDE),
        refused=refused,
        steps_of=lightning_steps,
        distilled=lightning,
    ),
    loras=Loras(detect_lora, distills=True),
    controls=CONTROLS,
    detect_control=detect_control,
    control_folder=lambda config: config.get("_class_name") == CONTROL_CLASS,
    control_problem=lambda config: INPAINTING if config.get("extra_condition_channels") else None,
    control_classes=(CONTROL_CLASS,),
    training=TrainingFormula(
        architecture="qwen-image/lora",
        targets=PROJECTIONS,
        scheduler=training_scheduler,
        compare=compare,
        kept_values=kept_values,
        distilled_steps=LIGHTNING_STEPS,
    ),
    architectures=architectures,
)
