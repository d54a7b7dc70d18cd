"""Takes one held job to its end: binds its graph, has ComfyUI run it, stores its results, writes its final state."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bridge.broker.jobs import JobQueue
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError, Interrupted
from bridge.comfyui.history import RunResult
from bridge.contract import BridgeError, ErrorBody, JobKind, JobStatus, Unavailable
from bridge.modes.graphs import load_graph
from bridge.modes.library import ModeLibrary
from bridge.worker.input_cleaning import InputCleaner
from bridge.worker.job import inputs
from bridge.worker.job.failures import error_body
from bridge.worker.job.graph_run import BoundGraph, GraphRun
from bridge.worker.job.held import HeldJob
from bridge.worker.job.record import JobRecord
from bridge.worker.job.results import Results

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workplace:
    """What all jobs of one worker share."""

    queue: JobQueue
    comfy: ComfyUI
    modes: ModeLibrary
    cleaner: InputCleaner
    watched: Callable[[str], bool]
    """Whether anybody looks at the previews of a job, by its id."""
    stall_s: float = 0.0
    """How long ComfyUI may be silent about a job that it runs; 0 is without end."""


@dataclass(frozen=True)
class Outcome:
    """What the final state of a job says."""

    status: JobStatus
    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def failed(cls, error: ErrorBody) -> Outcome:
        """The job ends with an error."""
        return cls(JobStatus.FAILED, {"error": error})

    @classmethod
    def cancelled(cls, cause: str) -> Outcome:
        """The job was stopped."""
        return cls(JobStatus.CANCELLED, {"error": ErrorBody(code="cancelled", message=cause)})


class Execution:
    """One job on its way from TAKEN to ENDED or RELEASED."""

    def __init__(self, place: Workplace, held: HeldJob, record: JobRecord) -> None:
        self._place = place
        self._held = held
        self._record = record
        self._bound = BoundGraph({})
        self._results: Results | None = None

    async def run(self) -> None:
        """Run the job and write its end.

        Raises Unavailable if the broker stays away: then the job is neither done nor failed, and is delivered again.
        """
        outcome = await self._outcome()
        if outcome is None:
            self._held.release()
        else:
            await self.end(outcome)

    async def end(self, outcome: Outcome) -> None:
        """Write the final state and announce it, unless another process has written one. Raises Unavailable."""
        held = self._held
        held.end()
        try:
            await self._write(outcome)
        except Unavailable:
            raise
        except Exception as error:
            log.exception("job %s: its end could not be written", held.job.job_id)
            await self._write(Outcome.failed(error_body(error, self._bound.graph)))
        held.ended()

    async def _write(self, outcome: Outcome) -> None:
        started_at = self._held.start.at if self._held.start else None
        written = await self._record.write_end(
            outcome.status, started_at=started_at, finished_at=self._held.finished_at, **outcome.fields
        )
        if written is not None:
            await self._place.queue.announce(written)

    async def _outcome(self) -> Outcome | None:
        """Run the job. None: it goes back to the queue. Raises Unavailable."""
        held = self._held
        try:
            held.prepare()
            await self._bind()
            held.submit()
            result = await self._run_graph()
            held.collect()
            return await self._collect(result)
        except Interrupted:
            if held.to_be_released:
                return None
            if held.cancelled and held.assignment.redelivered and self._record.state.attempts:
                with contextlib.suppress(ComfyUIError):
                    await self._place.comfy.cancel(held.job.job_id)
            return Outcome.cancelled("the job was cancelled" if held.cancelled else "the job was stopped in ComfyUI")
        except Unavailable:
            raise
        except (ComfyUIError, BridgeError) as error:
            return Outcome.failed(error_body(error, self._bound.graph))
        except Exception as error:
            # The barrier of this slot: whatever goes wrong in one job is reported to its caller and ends there.
            log.exception("job %s failed", held.job.job_id)
            return Outcome.failed(error_body(error, self._bound.graph))
        finally:
            if self._results is not None:
                await self._results.close()

    async def _bind(self) -> None:
        """Upload what the job brings, and set its values in the graph."""
        job, place = self._held.job, self._place
        if job.kind is JobKind.LOAD:
            self._bound = BoundGraph(load_graph(job.model or ""))
            return
        mode = place.modes.get(job.mode)
        await place.cleaner.idle()
        values = await inputs.place(place.queue, place.comfy, mode, job.parameters)
        graph, workflow = mode.bind(values)
        self._bound = BoundGraph(graph, mode, workflow or None)
        self._results = Results(place.comfy, place.queue, job.job_id, mode)

    async def _run_graph(self) -> RunResult:
        job_id, place = self._held.job.job_id, self._place
        run = GraphRun(
            place.comfy,
            place.queue,
            self._held,
            self._record,
            self._bound,
            self._results,
            watched=lambda: place.watched(job_id),
            stall_s=place.stall_s,
        )
        return await run.run()

    async def _collect(self, result: RunResult) -> Outcome:
        """Store the results of a run that succeeded."""
        if self._results is None:
            return Outcome(JobStatus.DONE, {"loaded": result.first("loaded")})
        image_format, images = await self._results.collect(result)
        warnings = list(dict.fromkeys([*self._held.job.warnings, *result.texts("warnings")]))
        return Outcome(JobStatus.DONE, {"image_format": image_format, "images": images, "warnings": warnings})
