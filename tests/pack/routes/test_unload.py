"""POST /neurolux/unload on a real ComfyUI: one model leaves memory, between two prompts, and the others stay."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
import requests

from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import text_to_image


def unload(comfyui: ComfyServer, body: Any) -> requests.Response:
    return requests.post(f"{comfyui.url}/neurolux/unload", json=body, timeout=30)


def loaded(comfyui: ComfyServer) -> set[str]:
    return {name for name, model in comfyui.models().items() if model["loaded"]}


def test_one_model_leaves_and_comes_back_with_the_same_image(comfyui: ComfyServer) -> None:
    before = comfyui.images(comfyui.run(text_to_image("tiny-sdxl", steps=1, seed=310)))[0]
    comfyui.run(text_to_image("tiny-flux-dev", steps=1, seed=310))
    assert {"tiny-sdxl", "tiny-flux-dev"} <= loaded(comfyui)
    assert unload(comfyui, {"model": "tiny-sdxl"}).json() == {"unloaded": True, "busy": False}
    assert "tiny-flux-dev" in loaded(comfyui)
    assert "tiny-sdxl" not in loaded(comfyui)
    assert comfyui.models()["tiny-sdxl"]["memory"] is None
    assert unload(comfyui, {"model": "tiny-sdxl"}).json() == {"unloaded": False, "busy": False}
    comfyui.run(text_to_image("tiny-sdxl", steps=1, seed=311))  # Another seed, and so no answer from ComfyUI's cache.
    assert "tiny-sdxl" in loaded(comfyui)
    again = comfyui.images(comfyui.run(text_to_image("tiny-sdxl", steps=1, seed=310)))[0]
    assert again.tobytes() == before.tobytes()


def test_while_a_prompt_runs_nothing_is_unloaded(comfyui: ComfyServer) -> None:
    prompt = comfyui.queue(text_to_image("tiny-flux-dev", steps=40, seed=311), uuid.uuid4().hex)
    deadline = time.monotonic() + 30
    while not comfyui.get("/queue")["queue_running"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert unload(comfyui, {"model": "tiny-flux-dev"}).json() == {"unloaded": False, "busy": True}
    assert comfyui.wait(prompt).status == "success"
    assert unload(comfyui, {"model": "tiny-flux-dev"}).json() == {"unloaded": True, "busy": False}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [({"model": "nope"}, 404, "unknown_model"), ({}, 400, "not_json"), ([], 400, "not_json"), ("x", 400, "not_json")],
)
def test_what_makes_no_sense_is_refused(comfyui: ComfyServer, body: Any, status: int, code: str) -> None:
    answer = unload(comfyui, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_form_of_a_web_page_is_refused(comfyui: ComfyServer) -> None:
    answer = requests.post(f"{comfyui.url}/neurolux/unload", data={"model": "tiny-flux-dev"}, timeout=10)
    assert answer.status_code == 415
