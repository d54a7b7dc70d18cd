"""GET /neurolux/plan on a real ComfyUI."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.pack.comfy_server import ComfyServer, comfyui_dir
from tests.tiny_files import bfl_flux, clip_l, ldm_vae, llama_t5, state_of, tiny_flux, write, write_gguf


def ask(comfyui: ComfyServer, **query: str) -> tuple[int, Any]:
    """Status and JSON."""
    try:
        with urllib.request.urlopen(
            f"{comfyui.url}/neurolux/plan?{urllib.parse.urlencode(query)}", timeout=60
        ) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_this_machine_is_planned_for_unless_another_is_described(comfyui: ComfyServer) -> None:
    status, here = ask(comfyui, model="tiny-flux-dev")
    assert (status, here["machine"]["device"], here["plan"]["offload"]) == (200, "cpu", "none")
    status, other = ask(comfyui, model="tiny-flux-dev", vram="8GB", ram="32GB")
    assert (status, other["machine"]["device"], other["machine"]["free_vram"]) == (200, "cuda", 7_500_000_000)


def test_a_model_that_is_not_here_is_planned_by_the_catalog(comfyui: ComfyServer) -> None:
    status, answer = ask(comfyui, model="flux-dev", vram="8GB", ram="64GB", width="1024", steps="20")
    assert status == 200
    size = {"width": 1024, "height": 1024, "count": 1, "steps": 20}
    assert answer["picture"] == {**size, "passes": 1, "frames": 1, "encodes": None, "seen": 0}
    assert answer["plan"]["components"]["transformer"]["placement"] == "stream"
    assert answer["plan"]["peak_vram"] <= 7_500_000_000
    assert "blocks stay" in answer["table"]


def test_a_single_file_is_planned_by_its_headers(comfyui: ComfyServer, base_directory: Path) -> None:
    flux = tiny_flux(comfyui_dir(), guidance=True)
    root = base_directory / "models"
    t5 = root / "text_encoders" / "t5-planned.gguf"
    written = [
        write(root / "diffusion_models" / "planned.safetensors", bfl_flux(state_of(flux.transformer))),
        write(root / "text_encoders" / "clip_l_planned.safetensors", clip_l(state_of(flux.text_encoder))),
        write(root / "vae" / "ae.planned.safetensors", ldm_vae(state_of(flux.vae))),
        t5,
    ]
    write_gguf(t5, llama_t5(state_of(flux.text_encoder_2)), "Q8_0")
    try:
        status, answer = ask(comfyui, model="planned.safetensors", vram="8GB", ram="32GB")
    finally:
        for path in written:
            path.unlink()
    assert status == 200, answer
    parts = answer["plan"]["components"]
    assert (parts["text_encoder_2"]["storage"], answer["plan"]["offload"]) == ("gguf", "none")
    assert 10_000_000 < parts["transformer"]["bytes"] < 40_000_000


@pytest.mark.parametrize(
    ("query", "status", "code", "field", "message"),
    [
        ({"model": "nope"}, 404, "unknown_model", "model", "known are starter, flux-schnell"),
        ({"model": "flux-dev", "vram": "much"}, 422, "invalid_request", "vram", "write 8GB, 7.5GB or 8GiB"),
        (
            {"model": "flux-dev", "colour": "red"},
            422,
            "invalid_request",
            "colour",
            "use vram, card, ram, disk",
        ),
        ({"model": "flux-dev", "offload": "x"}, 422, "invalid_request", "offload", "use auto, none"),
        ({"model": "flux-dev", "width": "0"}, 422, "invalid_request", "width", "not a whole number above 0"),
    ],
)
def test_errors_name_the_field_and_the_remedy(
    comfyui: ComfyServer, query: dict[str, str], status: int, code: str, field: str, message: str
) -> None:
    answered, answer = ask(comfyui, **query)
    assert (answered, answer["error"]["code"], answer["error"]["field"]) == (status, code, field)
    assert message in answer["error"]["message"]
