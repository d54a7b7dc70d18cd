"""One bad file in a model folder: it is named with its fault, and everything else goes on.

Each row is a kind of file that people, downloads and other programs leave behind; each is put into every folder.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.pack.comfy_server import ComfyServer

Put = Callable[[Path], object]


def content(data: bytes) -> Put:
    """A file with these bytes."""
    return lambda path: path.write_bytes(data)


def header(text: bytes, length: int | None = None, data: bytes = b"") -> Put:
    """A safetensors file with this header, and this claim of its length."""
    return content(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensors(**entries: object) -> Put:
    """A safetensors file with these entries."""
    return header(json.dumps(entries).encode())


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


GOOD = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
LORA = "lora_unet_down_blocks_0.lora_down.weight"
VALID = ("half a character", "names of a LoRA without sides", "names of everything without sides")
"""The header itself is in order."""
KINDS: dict[str, Put] = {
    "brackets": header(b"[" * 100_000),
    "objects": header(b'{"a":' * 100_000),
    "closed brackets": header(b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"),
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a folder": Path.mkdir,
    "a full folder": lambda path: (path.mkdir(), (path / "x.safetensors").write_bytes(b"x")),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a tty": lambda path: path.symlink_to("/dev/tty"),
    "a dead link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to its folder": lambda path: path.symlink_to("."),
    "empty": content(b""),
    "four bytes": content(b"abcd"),
    "only a length": content(struct.pack("<Q", 0)),
    "half a header": header(b'{"a": {"dty', 4096),
    "a huge length": header(b"{}", 2**63),
    "the largest length": header(b"{}", 2**64 - 1),
    "html": content(b"<!doctype html><title>404</title>" * 100),
    "a git-lfs pointer": content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    "zip": content(b"PK\x03\x04" + bytes(500)),
    "not UTF-8": header(b'{"\xff\xfe": {}}'),
    "half a character": header(json.dumps({"\ud800": GOOD}).encode(), data=b"1234"),
    "a list": header(b"[1, 2]"),
    "a number": header(b"1"),
    "null": header(b"null"),
    "a huge number": header(b'{"a": ' + b"9" * 10_000 + b"}"),
    "infinite": header(b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 0]}}'),
    "entries that are no objects": tensors(a=1, b=None, c=[]),
    "no offsets": tensors(a={"dtype": "F32", "shape": [1]}),
    "text as shape": tensors(a={**GOOD, "shape": "x"}),
    "nested shape": tensors(a={**GOOD, "shape": [[1]]}),
    "negative shape": tensors(a={**GOOD, "shape": [-1]}),
    "true as shape": tensors(a={**GOOD, "shape": [True]}),
    "one offset": tensors(a={**GOOD, "data_offsets": [0]}),
    "offsets as text": tensors(a={**GOOD, "data_offsets": ["0", "4"]}),
    "offsets backwards": tensors(a={**GOOD, "data_offsets": [4, 0]}),
    "offsets beyond the end": tensors(a={**GOOD, "data_offsets": [0, 2**62]}),
    "a tensor twice": header(
        json.dumps({"a": GOOD})[:-1].encode() + b", " + json.dumps({"a": GOOD})[1:].encode(), data=b"1234"
    ),
    "two tensors in the same place": header(json.dumps({"a": GOOD, "b": GOOD}).encode(), data=b"1234"),
    "a type as number": tensors(a={**GOOD, "dtype": 7}),
    "names of a LoRA without sides": header(
        json.dumps({LORA: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}).encode(), data=b"1234"
    ),
    "names of everything without sides": header(
        json.dumps(
            {
                name: {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}
                for name in (
                    "double_blocks.0.img_attn.qkv.weight",
                    "model.diffusion_model.input_blocks.0.0.weight",
                    "down_blocks.0.resnets.0.conv1.weight",
                    "controlnet_blocks.0.weight",
                    "input_hint_block.0.weight",
                    "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight",
                    "text_model.embeddings.token_embedding.weight",
                    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                    "decoder.conv_in.weight",
                )
            }
        ).encode()
    ),
}
UNLISTED = ("a folder", "a device", "a tty", "a dead link", "a link to itself", "a link to its folder", *VALID)
"""ComfyUI lists neither folders nor dead links; a link that leads out of the folder is not followed."""
LISTED_AS = {"a full folder": "bad.safetensors/x.safetensors"}
NAMES = {
    "a line break in the name": b"two\nlines.safetensors",
    "terminal codes in the name": b"\x1b[31mred\x07.safetensors",
    "a name that is not UTF-8": b"caf\xe9.safetensors",
    "a long name": b"n" * 243 + b".safetensors",
}
GGUF_KINDS: dict[str, Put] = {
    "empty": content(b""),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "only magic": content(b"GGUF"),
    "another version": content(b"GGUF" + struct.pack("<IQQ", 99, 0, 0)),
    "too many tensors": content(b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0)),
    "too many values": content(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63)),
    "an endless array": content(b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 2**60) + bytes(64)),
    "endless strings": content(b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**60) + bytes(64)),
    "nested arrays": content(
        b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 50_000
    ),
    "an alignment of 0": content(b"GGUF" + struct.pack("<IQQQ17sII", 3, 0, 1, 17, b"general.alignment", 4, 0)),
    "a long string": content(b"GGUF" + struct.pack("<IQQQ1sIQ", 3, 0, 1, 1, b"k", 8, 2**62)),
    "an unknown type": content(b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77) + bytes(64)),
    "a tensor of no known type": content(b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 4, 999, 0)),
    "a tensor beyond the end": content(b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 2**40, 0, 0)),
}
FOLDERS = ("loras", "controlnet", "checkpoints", "diffusion_models", "text_encoders", "vae", "animatediff_models")


@contextmanager
def put(path: Path, make: Put) -> Iterator[None]:
    """A bad file, for as long as the test needs it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    try:
        yield
    finally:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            remove(path)


def check(comfyui: ComfyServer, *named: str) -> None:
    """Everything else is listed and usable; each bad LoRA and ControlNet in ``named`` is there with its fault."""
    document = comfyui.get("/neurolux/models")
    ready = {model["name"] for model in document["models"] if model["status"] == "ready"}
    assert {"tiny-sdxl", "tiny-flux-dev"} <= ready
    adapters = document["adapters"]
    assert any(adapter["name"] == "sdxl-a.safetensors" and not adapter["problem"] for adapter in adapters)
    bad = [adapter["name"] for adapter in adapters if adapter["problem"] and adapter["family"] is None]
    assert not Counter(named) - Counter(bad)
    for node in ("NeuroLuxLoadModel", "NeuroLuxApplyLora", "NeuroLuxApplyControlNet"):
        assert node in comfyui.get(f"/object_info/{node}"), "the editor still has the node"


@pytest.mark.usefixtures("adapter_files")
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_takes_nothing_down(comfyui: ComfyServer, base_directory: Path, kind: str) -> None:
    with ExitStack() as placed:
        paths = [base_directory / "models" / folder / "bad.safetensors" for folder in FOLDERS]
        for path in paths:
            placed.enter_context(put(path, KINDS[kind]))
        check(comfyui, *[LISTED_AS.get(kind, "bad.safetensors")] * (0 if kind in UNLISTED else 2))


@pytest.mark.usefixtures("adapter_files")
@pytest.mark.parametrize("kind", NAMES)
def test_a_bad_name_takes_nothing_down(comfyui: ComfyServer, base_directory: Path, kind: str) -> None:
    with ExitStack() as placed:
        for folder in FOLDERS:
            path = base_directory / "models" / folder / os.fsdecode(NAMES[kind])
            placed.enter_context(put(path, content(b"no weights")))
        check(comfyui, *[NAMES[kind].decode("utf-8", "replace")] * 2)


@pytest.mark.usefixtures("adapter_files")
@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_a_bad_gguf_takes_nothing_down(comfyui: ComfyServer, base_directory: Path, kind: str) -> None:
    with ExitStack() as placed:
        for folder in ("checkpoints", "diffusion_models", "text_encoders"):
            placed.enter_context(put(base_directory / "models" / folder / "bad.gguf", GGUF_KINDS[kind]))
        check(comfyui)


CONFIGS: dict[str, Put] = {
    "brackets": content(b"[" * 100_000),
    "objects": content(b'{"a":' * 100_000),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "empty": content(b""),
    "half": content(b'{"_class_name": "Stable'),
    "not UTF-8": content(b'{"\xff": 1}'),
    "a list": content(b"[]"),
    "text": content(b'"x"'),
    "empty lists": content(b'{"_class_name": "StableDiffusionXLPipeline", "unet": [], "vae": [[]], "scheduler": [{}]}'),
    "wrong values": content(b'{"_class_name": ["a"], "sample_size": "x", "block_out_channels": 5, "weight_map": 3}'),
    "a huge number": content(b'{"sample_size": ' + b"9" * 10_000 + b"}"),
    "numbers of no use": content(b'{"sample_size": 0, "in_channels": -1, "weight_map": {"a": 5, "b": null}}'),
}
FILES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "neurolux.toml",
)


@pytest.mark.usefixtures("adapter_files")
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_damaged_folder_takes_nothing_down(
    comfyui: ComfyServer, base_directory: Path, tiny_models: dict[str, Path], kind: str
) -> None:
    """One copy of a model for each of its files, which is damaged in that copy."""
    folders = [base_directory / "models" / "diffusers" / f"damaged-{number}" for number in range(len(FILES))]
    with ExitStack() as placed:
        for folder, file in zip(folders, FILES, strict=True):
            copy_links(tiny_models["tiny-sdxl"], folder)
            placed.callback(remove, folder)
            (folder / file).unlink(missing_ok=True)
            CONFIGS[kind](folder / file)
        check(comfyui)


def copy_links(source: Path, folder: Path) -> None:
    """A copy of a folder whose files are links."""
    folder.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            copy_links(path, folder / path.name)
        else:
            (folder / path.name).symlink_to(path)


def remove(folder: Path) -> None:
    """Remove a folder with whatever is in it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove(path)
        else:
            path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("kind", "make"), [*KINDS.items(), *((f"gguf: {kind}", make) for kind, make in GGUF_KINDS.items())]
)
def test_reading_a_header_fails_in_one_way(tmp_path: Path, kind: str, make: Put) -> None:
    from neurolux.errors import WeightsMissing
    from neurolux.weights.headers import read_header
    from neurolux.weights.stamps import read_shapes

    path = tmp_path / ("bad.gguf" if kind.startswith("gguf") else "bad.safetensors")
    make(path)
    if kind in VALID:
        assert read_header(path).tensors
        return
    for read in (read_header, read_shapes):
        with pytest.raises(WeightsMissing, match="bad"):
            read(path)


@pytest.mark.parametrize(
    ("count", "values"),
    [(100, struct.pack("<QIB", 0, 0, 1) * 100), (1, struct.pack("<QIIQ", 0, 9, 8, 100) + bytes(8 * 100))],
    ids=["numbers", "an array of strings"],
)
def test_a_gguf_of_the_shortest_values_is_read(tmp_path: Path, count: int, values: bytes) -> None:
    from neurolux.weights.headers import read_header

    path = tmp_path / "short.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, count) + values + bytes(-(24 + len(values)) % 32))
    assert read_header(path).tensors == {}
