"""Reads a LoRA file of any dialect: which layers it has, and which tensors of which method each of them consists of.

Trainers spell the same things differently: ``lora_A``, ``lora_down`` and ``lora.down``; with or without the name of an
adapter; dots or underscores between the parts of a layer's name; the prefix of a network or of a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from .settings import FileSettings, LayerSettings

END = r"(?:\.(?!weight$|bias$)\w+)?(?:\.weight)?$"
"""The name of an adapter, and the attribute."""
KINDS = (
    (re.compile(r"[._](?:lora_down|lora_A|lora\.down|lora_linear_layer\.down)" + END), "down"),
    (re.compile(r"[._](?:lora_up|lora_B|lora\.up|lora_linear_layer\.up)" + END), "up"),
    (re.compile(r"(?:[._](?:lora_up|lora_B)(?:\.\w+)?\.bias|\.diff_b)$"), "bias"),
    (re.compile(r"\.diff(?:\.weight)?$"), "diff"),
    (re.compile(r"\.lora_mid\.weight$"), "mid"),
    (re.compile(r"(?:\.lora)?\.alpha$"), "alpha"),
    (re.compile(r"\.(?:dora_scale|lora_magnitude_vector)" + END), "dora"),
    (re.compile(r"\.((?:lokr|hada)_\w+|oft_blocks|rescale|on_input|oft_R|boft_[Rs]|ia3_l|[wb]_norm)" + END), ""),
    (re.compile(r"\.([ab][12])\.weight$"), ""),
    (re.compile(r"\.weight$"), "weight"),
)  # fmt: skip
"""The end of a tensor's name, and what it is; empty: its own name."""
XLABS = {
    "double_blocks.processor.qkv_lora1": "img_attn.qkv", "double_blocks.processor.qkv_lora2": "txt_attn.qkv",
    "double_blocks.processor.proj_lora1": "img_attn.proj", "double_blocks.processor.proj_lora2": "txt_attn.proj",
    "single_blocks.processor.qkv_lora": "qkv", "single_blocks.processor.proj_lora": "linear2",
}  # fmt: skip
"""XLabs' names of the layers of a FLUX block."""
XLABS_NAME = re.compile(r"(double_blocks|single_blocks)\.(\d+)\.(processor\.\w+_lora\d?)(?=\.(?:down|up)\.weight$)")
OLD_PROCESSOR = re.compile(r"\.processor\.(to_[a-z]+)(?=_lora\.)")
"""The attention processors of old versions of diffusers."""
OLD_OUT = {"to_out": "to_out.0"}
REST = re.compile(r"\.[^.]+$")
METHODS = (
    ("lokr_", "LoKr"),
    ("hada_", "LoHa"),
    ("oft_blocks", "OFT"),
    ("oft_diag", "OFT of an old LyCORIS"),
    ("oft_", "OFT of another form"),
    ("boft_", "BOFT of another form"),
    ("on_input", "(IA)³"),
    ("vera_", "VeRA"),
    ("hra_", "HRA"),
    ("vblora_", "VB-LoRA"),
    ("fourierft_", "FourierFT"),
    ("shira_", "SHiRA"),
    ("reshape_weight", "a layer of another size"),
    ("set_weight", "replaced weights"),
)
"""How tensors of methods are called."""
OTHER_KINDS = re.compile(r"\.((?:oft_(?!blocks|R)|boft_(?![Rs])|vera_|hra_|vblora_|fourierft_|shira_)\w*)" + END)
EMBEDDING = re.compile(r"^bundle_emb\.(.+?)\.")
EMBEDDED = "a textual inversion, which prompts cannot use here"


@dataclass
class FileLayer:
    """The tensors of one layer in a LoRA file, by kind."""

    name: str
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    """Tensors that the pack does not know."""
    settings: LayerSettings | None = None
    """What the file's settings say of it."""
    twice: str = ""
    """One of two tensors that say the same thing, and are not the same."""

    @property
    def foreign(self) -> bool:
        """Whether it is not a layer of a LoRA at all, but something that a LoRA file may bring along."""
        return EMBEDDING.match(self.name + ".") is not None

    @property
    def method(self) -> str:
        """The name of the method, for messages."""
        if self.foreign:
            return EMBEDDED
        named = [*self.tensors, *self.unknown]
        found = next((title for start, title in METHODS if any(name.startswith(start) for name in named)), None)
        return found or (f"tensors called {named[0]}" if named and not self.tensors else "LoRA")


def read_layers(tensors: Mapping[str, torch.Tensor], settings: FileSettings) -> list[FileLayer]:
    """The layers of a file with these settings, in its order."""
    found: dict[str, FileLayer] = {}
    for key, value in tensors.items():
        key = uniform(key)
        name, kind = split(key)
        layer = found.setdefault(name, FileLayer(name, settings=settings.of(name)))
        if kind is None or layer.foreign:
            layer.unknown.append(key.removeprefix(name).strip("._"))
        elif kind in layer.tensors:
            layer.twice = key
        else:
            layer.tensors[kind] = value
    return list(found.values())


def uniform(key: str) -> str:
    """The name of a tensor with those of attention processors replaced by the layers' own."""
    xlabs = XLABS_NAME.search(key)
    if xlabs is not None and (layer := XLABS.get(f"{xlabs[1]}.{xlabs[3]}")):
        return XLABS_NAME.sub(rf"\1.\2.{layer}.lora", key)
    return OLD_PROCESSOR.sub(lambda match: "." + OLD_OUT.get(match[1], match[1]), key)


def split(key: str) -> tuple[str, str | None]:
    """The name of the layer, and the kind of the tensor; None for one that the pack does not know."""
    if embedding := EMBEDDING.match(key):
        return f"bundle_emb.{embedding[1]}", None
    if OTHER_KINDS.search(key):
        return OTHER_KINDS.sub("", key), None
    for pattern, kind in KINDS:
        match = pattern.search(key)
        if match is not None:
            return key[: match.start()], kind or match[1]
    return REST.sub("", key.removesuffix(".weight")), None


def flat(name: str) -> str:
    """A layer's name without the difference between dots and underscores."""
    return name.replace(".", "_")


DENOISER = ("base_model_model_", "lora_unet_", "lora_transformer_", "lycoris_", "lora_", "model_diffusion_model_",
            "diffusion_model_", "transformer_", "unet_", "model_")  # fmt: skip
ENCODERS = {
    "text_encoder": ("lora_te1_", "lora_te_", "text_encoder_", "text_encoders_clip_l_transformer_", "te1_", "clip_l_"),
    "text_encoder_2": ("lora_te2_", "lora_te3_", "text_encoder_2_", "text_encoders_clip_g_transformer_", "te2_",
                       "text_encoders_t5xxl_transformer_", "clip_g_", "t5xxl_"),
}  # fmt: skip
TEXT_MODEL = "text_model_"


def spellings(name: str, denoiser: str) -> Iterable[tuple[str, str]]:
    """Which layer of which component a name in a file may mean: (component, flat name), the likeliest first."""
    whole = flat(name)
    for component, prefixes in sorted(ENCODERS.items(), reverse=True):
        for prefix in prefixes:
            for start in ("", "base_model_model_"):
                if whole.startswith(start + prefix):
                    rest = whole.removeprefix(start + prefix)
                    yield component, rest.removeprefix(TEXT_MODEL)
    rest = whole
    while True:
        yield denoiser, rest
        prefix = next((prefix for prefix in DENOISER if rest.startswith(prefix)), None)
        if prefix is None:
            return
        rest = rest.removeprefix(prefix)


def spells_encoder(name: str) -> bool:
    """Whether the layer is one of a text encoder, which a model may leave alone (T5)."""
    return next(iter(spellings(name, "")))[0] != ""
