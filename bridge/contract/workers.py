"""Workers: their status messages, lists of workers, and what workers answer to gateways."""

from __future__ import annotations

from pydantic import Field, RootModel

from bridge.contract.wire import WireModel


class WorkerStatus(WireModel):
    """The status that a worker sends to `ai.vision.imagegen.workers.<worker_id>`, every few seconds and on change."""

    worker_id: str
    comfyui_up: bool
    device: str | None = None
    vram_total_bytes: int | None = None
    vram_free_bytes: int | None = None
    reconnects: int = Field(
        description="Reconnections to the NATS server and to ComfyUI's websocket since the worker started."
    )
    redeliveries: int = Field(description="Jobs that another worker, or an earlier process of this one, had before.")
    running: list[str] = Field(description="The jobs it holds.")
    loaded_models: list[str]
    started_at: float
    problem: str | None = Field(default=None, description="Why it gets no jobs from the queue. Null: it does.")


class WorkerEntry(WorkerStatus):
    """A worker, and the age of its last status in seconds."""

    age_seconds: float


class WorkerList(WireModel):
    """The workers that sent a status recently."""

    workers: list[WorkerEntry]


class WidgetOptions(RootModel[list[list[str] | None]]):
    """The options of the widgets that a gateway asked about, in its order; null where there are none or none known."""
