"""Frames and history entries that a healthy ComfyUI cannot be made to send on demand."""

from __future__ import annotations

import json
import struct

import pytest

from bridge.comfyui.errors import ComfyUIError, Interrupted, NodeFailed
from bridge.comfyui.history import read_entry
from bridge.comfyui.messages import Frame, Preview, Progress, parse_binary, parse_text


def test_a_preview_of_an_older_server_names_no_prompt() -> None:
    assert parse_binary(struct.pack(">II", 1, 2) + b"png") == Frame(None, (Preview("", b"png", "image/png"),))


def test_a_preview_with_metadata_names_prompt_and_node() -> None:
    metadata = json.dumps({"node_id": "12:3", "prompt_id": "p", "image_type": "image/jpeg"}).encode()
    data = struct.pack(">II", 4, len(metadata)) + metadata + b"jpeg"
    assert parse_binary(data) == Frame("p", (Preview("12:3", b"jpeg", "image/jpeg"),))


@pytest.mark.parametrize(
    "data", [b"", b"\0\0", struct.pack(">II", 4, 999) + b"{", struct.pack(">II", 4, 2) + b"[]", struct.pack(">I", 3)]
)
def test_a_broken_or_foreign_binary_frame_is_ignored(data: bytes) -> None:
    assert parse_binary(data) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"type": "progress", "data": {"prompt_id": "p"}}',
        '{"type": "executing", "data": {"node": null}}',
        '{"type": "status", "data": {"status": {}}}',
        '{"type": "progress_state", "data": {"prompt_id": "p", "nodes": {"1": null}}}',
    ],
)
def test_a_broken_or_foreign_text_frame_is_ignored(text: str) -> None:
    assert parse_text(text) is None


def test_progress_state_alone_is_progress_too() -> None:
    nodes = {
        "1": {"value": 1, "max": 1, "state": "finished"},
        "2": {"value": 0, "max": 1, "state": "running"},
        "3": {"value": 2, "max": 8, "state": "running"},
    }
    text = json.dumps({"type": "progress_state", "data": {"prompt_id": "p", "nodes": nodes}})
    assert parse_text(text) == Frame("p", (Progress("3", 2, 8),))


def test_messages_decide_over_the_status_string() -> None:
    # 0.3.75 keeps "success" from the run before when a graph fails before its first node
    failed = {"status": {"status_str": "success", "messages": [["execution_error", {"node_id": "1"}]]}}
    with pytest.raises(NodeFailed):
        read_entry("p", failed, cancel_requested=False)
    interrupted = {"status": {"status_str": "error", "messages": [["execution_interrupted", {}]]}}
    with pytest.raises(Interrupted):
        read_entry("p", interrupted, cancel_requested=False)
    with pytest.raises(ComfyUIError, match="no cause"):
        read_entry("p", {"status": {"status_str": "error", "messages": []}}, cancel_requested=False)


def test_missing_and_null_outputs_are_no_outputs() -> None:
    status = {"status_str": "success", "messages": [["execution_success", {}]]}
    assert read_entry("p", {"status": status}, cancel_requested=False).outputs == {}
    assert read_entry("p", {"status": None, "outputs": None}, cancel_requested=False).outputs == {}
    outputs = {"1": None, "2": {"images": []}}
    assert read_entry("p", {"status": status, "outputs": outputs}, cancel_requested=False).outputs == {
        "2": {"images": []}
    }
