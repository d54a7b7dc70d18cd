"""The part of the wire format that is about the workers themselves."""

from __future__ import annotations

from pydantic import Field, RootModel

from bridge.contract.wire import WireModel


class WorkerStatus(WireModel):
    """What a worker says of itself on `ai.vision.imagegen.workers.<worker_id>`, every few seconds and on change."""

    worker_id: str
    comfyui_up: bool
    device: str | None = None
    vram_total_bytes: int | None = None
    vram_free_bytes: int | None = None
    reconnects: int = Field(description="To the NATS server and to ComfyUI's websocket, since it was started.")
    redeliveries: int = Field(description="Jobs that came to it after another worker, or an earlier life, had them.")
    running: list[str] = Field(description="The jobs that it holds.")
    loaded_models: list[str]
    started_at: float


class WorkerEntry(WorkerStatus):
    """A worker, and how many seconds ago it was heard."""

    age_seconds: float


class WorkerList(WireModel):
    """The workers that were heard of lately."""

    workers: list[WorkerEntry]


class WidgetOptions(RootModel[list[list[str] | None]]):
    """The options of the widgets that a gateway asked about, in its order; null where there are none or none known."""
