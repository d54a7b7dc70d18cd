"""Control of a whole installation: freeing device memory, and the state of the queue."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from bridge.contract.jobs import Priority
from bridge.contract.wire import WireModel

MAX_REASON_CHARS = 500


class UnloadOutcome(StrEnum):
    """What an unload did on one worker."""

    UNLOADED = "unloaded"
    NOT_LOADED = "not_loaded"
    DEFERRED = "deferred"  # a job is running; ComfyUI frees its memory when that job ends
    BUSY = "busy"  # a job is running, and nothing was changed: try again
    UNREACHABLE = "unreachable"  # the worker, or its ComfyUI, does not answer


class UnloadRequest(WireModel):
    """The body of an unload over NATS. Null, or left out: every model, every worker."""

    model_name: str | None = None
    worker_id: str | None = None


class WorkerUnload(WireModel):
    """What an unload did on one worker."""

    worker_id: str
    outcome: UnloadOutcome
    models: list[str] = Field(default_factory=list, description="The models that were taken out of memory.")
    freed_bytes: int = Field(default=0, description="Bytes of weights that left the device.")
    vram_free_bytes: int | None = Field(default=None, description="Free memory of the device now. Null: no GPU.")
    message: str = Field(default="", description="What to do about an outcome other than unloaded and not_loaded.")


class UnloadAnswer(WireModel):
    """What an unload did. `model` is null where all models were to be unloaded."""

    model: str | None
    workers: list[WorkerUnload]


class PauseRequest(WireModel):
    """The body of a pause over NATS."""

    reason: str | None = Field(default=None, max_length=MAX_REASON_CHARS)


class Pause(WireModel):
    """A pause of the queue, as it is stored."""

    since: float
    by: str
    reason: str | None = None


class QueueState(WireModel):
    """The queue of the installation."""

    paused: bool = Field(description="No worker takes a job. Running jobs continue, and new ones are accepted.")
    since: float | None = Field(default=None, description="When it was paused.")
    by: str | None = Field(default=None, description="Who paused it: a token by its number, an address, or NATS.")
    reason: str | None = Field(default=None, description="The reason that was given.")
    waiting: int
    waiting_by_priority: dict[Priority, int]
    running: int


class QueueCancelRequest(WireModel):
    """The body of a cancellation of all jobs over NATS."""

    running: bool = False


class QueueCancelAnswer(WireModel):
    """What a cancellation of all jobs did: the number of jobs by outcome (see `CancelOutcome`)."""

    dequeued: int = Field(default=0, description="Waiting jobs that will not run.")
    interrupted: int = Field(default=0, description="Running jobs that were stopped.")
    recorded: int = Field(default=0, description="Running jobs whose worker has not answered yet.")
    already_ended: int = Field(default=0, description="Jobs that ended before they could be cancelled.")
    still_running: int = Field(default=0, description="Jobs that started meanwhile, and were left alone.")
