"""ComfyUI's websocket frames as typed values. Parsing only: no connection, no decision.

Text frames are `{"type", "data"}`. Binary frames start with a big-endian u32 event number: 1 is a preview that names no
prompt, 3 is text, and 4 is a preview with JSON metadata, sent in place of 1 to clients that negotiate it
(ComfyUI `server.py: send_image_with_metadata`, `protocol.py: BinaryEventTypes`).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

HELLO = json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
"""The first message of a client: it asks for previews that name their prompt and node."""

_PREVIEW_IMAGE = 1
_PREVIEW_WITH_METADATA = 4
_PREVIEW_MIME = {1: "image/jpeg", 2: "image/png"}


@dataclass(frozen=True, slots=True)
class Queued:
    """The prompt waits; `position` others run before it."""

    position: int


@dataclass(frozen=True, slots=True)
class Started:
    """ComfyUI took the prompt from its queue."""


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A node began to run."""

    node: str


@dataclass(frozen=True, slots=True)
class Cached:
    """These nodes do not run again: ComfyUI uses their results of an earlier run."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """A node's own progress: `value` of `maximum` steps."""

    node: str
    value: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview image. `node` is empty if ComfyUI did not say which node sent it."""

    node: str
    image: bytes
    mime: str


@dataclass(frozen=True, slots=True)
class NodeDone:
    """A node's UI output, as the history will have it. Its files can be fetched before the run ends."""

    node: str
    output: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Download:
    """The NeuroLux pack downloads weights. `total` is None if the server did not send it."""

    node: str
    repo: str
    file: str
    done: int
    total: int | None
    bytes_per_second: float | None


@dataclass(frozen=True, slots=True)
class Loading:
    """The NeuroLux pack loads weights into memory: `value` of `maximum` bytes of `model`."""

    node: str
    model: str
    value: int
    maximum: int


Event = Queued | Started | NodeStarted | Cached | Progress | Preview | NodeDone | Download | Loading


@dataclass(frozen=True, slots=True)
class Ending:
    """The run succeeded, failed or was interrupted, but its history entry may not be written yet.

    It may even be none of these: a blocked node sends `execution_error` and the run continues
    (ComfyUI `execution.py: execution_block_cb`). So it is a hint to check, never an outcome.
    """


@dataclass(frozen=True, slots=True)
class Succeeded(Ending):
    """The run succeeded: this connection has received the output of every node."""


@dataclass(frozen=True, slots=True)
class Finished:
    """`executing` with `node: null`: a fence, after which the history entry exists."""


@dataclass(frozen=True, slots=True)
class Poke:
    """Sent by the bridge to itself: check the queue and the history now."""


Signal = Event | Ending | Finished | Poke


@dataclass(frozen=True, slots=True)
class Frame:
    """The signals of one websocket frame, and their prompt (None: the frame does not say)."""

    prompt_id: str | None
    signals: tuple[Signal, ...]


def _executing(data: Mapping[str, Any]) -> tuple[Signal, ...]:
    node = data.get("node")
    return (Finished(),) if node is None else (NodeStarted(str(node)),)


def _cached(data: Mapping[str, Any]) -> tuple[Signal, ...]:
    nodes = data.get("nodes") or ()
    return (Cached(tuple(str(node) for node in nodes)),) if nodes else ()


def _progress(data: Mapping[str, Any]) -> tuple[Signal, ...]:
    return (Progress(str(data.get("node") or ""), float(data["value"]), float(data["max"])),)


def _progress_state(data: Mapping[str, Any]) -> tuple[Signal, ...]:
    return tuple(
        Progress(str(node), float(state["value"]), float(state["max"]))
        for node, state in (data.get("nodes") or {}).items()
        # every node starts at 0 of 1 and ends at its maximum; only what a node counts itself matters
        if state.get("state") == "running" and float(state["max"]) > 1
    )


def _executed(data: Mapping[str, Any]) -> tuple[Signal, ...]:
    output = data.get("output")  # null for a cached node
    return (NodeDone(str(data.get("node") or ""), dict(output)),) if output else ()


def _download(data: Mapping[str, Any]) -> tuple[Signal, ...]:
    total, rate = data.get("total_bytes"), data.get("bytes_per_second")
    return (
        Download(
            node=str(data.get("node") or ""),
            repo=str(data.get("repo") or ""),
            file=str(data.get("file") or ""),
            done=int(data["done_bytes"]),
            total=int(total) if total else None,
            bytes_per_second=float(rate) if rate else None,
        ),
    )


def _loading(data: Mapping[str, Any]) -> tuple[Signal, ...]:
    node, model = str(data.get("node") or ""), str(data.get("model") or "")
    return (Loading(node, model, int(data["value"]), int(data["maximum"])),)


_PARSERS: dict[str, Callable[[Mapping[str, Any]], tuple[Signal, ...]]] = {
    "execution_start": lambda data: (Started(),),
    "execution_cached": _cached,
    "executing": _executing,
    "executed": _executed,
    "neurolux.download": _download,
    "neurolux.loading": _loading,
    "progress": _progress,
    "progress_state": _progress_state,
    "execution_success": lambda data: (Succeeded(),),
    "execution_error": lambda data: (Ending(),),
    "execution_interrupted": lambda data: (Ending(),),
}


_UNREAD = '{"type": "status"'
_PROGRESS_STATE = '{"type": "progress_state"'
_COUNTED = re.compile(r'"max": (?!1(?:\.0)?[,}])')
"""Frames that come several times a node and are not needed are recognised by their text: parsing them took a tenth of
the worker's time."""


def parse_text(text: str) -> Frame | None:
    """Parse a text frame. None for frames that a run does not need (queue status, unknown or broken frames)."""
    if text.startswith(_UNREAD) or (text.startswith(_PROGRESS_STATE) and not _COUNTED.search(text)):
        return None
    try:
        message = json.loads(text)
        parser = _PARSERS.get(message["type"])
        data = message.get("data") or {}
        prompt_id = data.get("prompt_id")
        # a frame without a prompt id greets a reconnecting client, and belongs to no run
        if parser is None or prompt_id is None:
            return None
        return Frame(str(prompt_id), parser(data))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # the websocket is a hint: a broken frame must not end a run


def parse_binary(data: bytes) -> Frame | None:
    """Parse a binary frame: a preview, or None for anything else."""
    try:
        (kind,) = struct.unpack_from(">I", data)
        if kind == _PREVIEW_IMAGE:
            (image_format,) = struct.unpack_from(">I", data, 4)
            mime = _PREVIEW_MIME.get(image_format, "image/jpeg")
            return Frame(None, (Preview("", data[8:], mime),))
        if kind == _PREVIEW_WITH_METADATA:
            (length,) = struct.unpack_from(">I", data, 4)
            metadata = json.loads(data[8 : 8 + length])
            preview = Preview(
                str(metadata.get("node_id") or ""),
                data[8 + length :],
                str(metadata.get("image_type") or "image/jpeg"),
            )
            prompt_id = metadata.get("prompt_id")
            return Frame(None if prompt_id is None else str(prompt_id), (preview,))
    except (struct.error, ValueError, AttributeError):
        return None
    return None
