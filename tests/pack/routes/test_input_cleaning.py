"""POST /neurolux/inputs/clean on a real ComfyUI: what no job needs goes, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import requests

from tests.pack.comfy_server import ComfyServer

DAY_S = 86_400.0
NAMES = [f"{letter * 32}.png" for letter in "abcd"]


@pytest.fixture
def folder(comfyui: ComfyServer, base_directory: Path) -> Path:
    """The uploads: the first the oldest, of a hundred bytes each; and an image that a person put there."""
    folder = base_directory / "input" / "imagegen"
    for age, name in enumerate([*reversed(NAMES), "mine.png"]):
        form = {"image": (name, bytes(100)), "subfolder": (None, "imagegen"), "overwrite": (None, "true")}
        assert requests.post(f"{comfyui.url}/upload/image", files=form, timeout=30).status_code == 200
        moment = time.time() - (age + 1) * DAY_S
        os.utime(folder / name, (moment, moment))
    return folder


def clean(comfyui: ComfyServer, **question: object) -> list[str]:
    bounds = {"older_than_s": 30 * DAY_S, "most_bytes": 10**9, "keep": [], **question}
    answer = requests.post(f"{comfyui.url}/neurolux/inputs/clean", json=bounds, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["removed"]


def test_what_is_old_goes_and_what_is_needed_stays(comfyui: ComfyServer, folder: Path) -> None:
    assert clean(comfyui) == []
    assert clean(comfyui, older_than_s=2.5 * DAY_S, keep=[NAMES[0]]) == [NAMES[1]]
    assert {path.name for path in folder.iterdir()} == {NAMES[0], *NAMES[2:], "mine.png"}


def test_the_oldest_go_when_all_take_too_much(comfyui: ComfyServer, folder: Path) -> None:
    assert clean(comfyui, most_bytes=250, keep=[NAMES[0]]) == NAMES[1:3]
    assert clean(comfyui, most_bytes=250) == []


def test_what_a_prompt_in_comfyuis_queue_speaks_of_stays(comfyui: ComfyServer, folder: Path) -> None:
    name = f"imagegen/{NAMES[0]}"
    slow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 4096, "height": 4096, "batch_size": 4, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "slow"}},
    }
    needs = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 1}},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "x"},
            "_meta": {"title": name},
        },
    }
    for prompt in (slow, needs):
        answer = requests.post(f"{comfyui.url}/prompt", json={"prompt": prompt}, timeout=30)
        assert answer.status_code == 200, answer.text
    assert NAMES[0] not in clean(comfyui, older_than_s=0)
    assert (folder / NAMES[0]).exists()
    assert not (folder / NAMES[1]).exists()
    requests.post(f"{comfyui.url}/queue", json={"clear": True}, timeout=10)
    requests.post(f"{comfyui.url}/interrupt", json={}, timeout=10)


@pytest.mark.parametrize("question", [b"", b"{}", b'{"older_than_s": "x", "most_bytes": 1, "keep": []}', b"[]"])
def test_a_question_that_makes_no_sense_removes_nothing(comfyui: ComfyServer, folder: Path, question: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{comfyui.url}/neurolux/inputs/clean", data=question, headers=headers, timeout=10)
    assert answer.status_code == 400
    assert len(list(folder.iterdir())) == 5
