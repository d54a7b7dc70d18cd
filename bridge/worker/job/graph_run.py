"""Runs the graph of one job on ComfyUI, and again when ComfyUI dies with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bridge.broker.jobs import JobQueue
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIUnavailable, Interrupted, JobLost, Stalled, WornOut
from bridge.comfyui.history import RunResult
from bridge.comfyui.messages import Event, NodeDone, Queued, Started
from bridge.contract import JobEvent
from bridge.modes.graphs import Graph
from bridge.modes.library import Mode
from bridge.stopping import stop
from bridge.worker.job.held import HeldJob
from bridge.worker.job.record import JobRecord
from bridge.worker.job.relay import Relay
from bridge.worker.job.results import Results
from bridge.worker.patience import comfyui_back
from bridge.worker.stall import Stall

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""How often a job may be started. One that took this many workers or ComfyUIs down with it has failed."""
MAX_RESENDS = 10
"""How often a job is sent again to a ComfyUI that dies before it starts the job."""
RUNNING_AFTER_S = 0.1
"""A run that takes less time is never written down as running, which saves a write."""


@dataclass(frozen=True)
class BoundGraph:
    """What ComfyUI runs for a job: the graph in API format with the job's values."""

    graph: Graph
    mode: Mode | None = None
    """None for a job that loads a model."""
    workflow: dict[str, Any] | None = None
    """The editor's format, which ComfyUI writes into the images; None for a mode that has only the API format."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The nodes to run: an app's outputs, where its author chose some; empty: all that end the graph."""
        return tuple(self.mode.result_names) if self.mode is not None else ()


class GraphRun:
    """The run of one job. `watched` returns whether anybody looks at its previews."""

    def __init__(
        self,
        comfy: ComfyUI,
        queue: JobQueue,
        held: HeldJob,
        record: JobRecord,
        bound: BoundGraph,
        results: Results | None,
        watched: Callable[[], bool],
        *,
        stall_s: float,
    ) -> None:
        self._comfy = comfy
        self._queue = queue
        self._held = held
        self._record = record
        self._bound = bound
        self._results = results
        self._watched = watched
        self._stall_s = stall_s
        self._stall: Stall
        """Of the try that runs."""
        self._attached = False
        self._noting: asyncio.Task[None] | None = None
        """Writes that the run started; made by its first event."""
        self._lost: asyncio.Future[bool]
        """Set when a try has ended: whether ComfyUI lost the run."""

    async def run(self) -> RunResult:
        """Run the graph, and again when ComfyUI restarts during the run. Raises ComfyUIError."""
        held, resent = self._held, 0
        # An earlier worker may have sent it to this very ComfyUI, which must not run it twice.
        known = held.assignment.redelivered
        while True:
            try:
                return await self._try(attach=known)
            except (JobLost, ComfyUIUnavailable) as error:
                if held.cancelled:
                    raise Interrupted(held.job.job_id, requested=True) from error
                if isinstance(error, JobLost) and not error.disconnected:
                    raise Interrupted(held.job.job_id) from error  # A user deleted it from ComfyUI's queue.
                if resent >= MAX_RESENDS:
                    raise
                log.warning("job %s: %s; trying again", held.job.job_id, error)
                resent += 1
                await comfyui_back(self._comfy, error)
                # A ComfyUI that was only out of reach may still have it.
                known = isinstance(error, ComfyUIUnavailable)

    async def _try(self, *, attach: bool) -> RunResult:
        """Run once. That a lost run started is written down before the next try."""
        self._lost = asyncio.get_running_loop().create_future()
        lost = False
        try:
            return await self._follow_while_alive(attach=attach)
        except (JobLost, ComfyUIUnavailable):
            lost = True
            raise
        finally:
            if not self._lost.done():
                self._lost.set_result(lost)
            noting, self._noting = self._noting, None
            if noting is not None:
                await noting

    async def _follow_while_alive(self, *, attach: bool) -> RunResult:
        """`_follow`. Raises Stalled, or Interrupted for a cancelled job, when ComfyUI does nothing with it any more."""
        job_id = self._held.job.job_id
        self._stall = Stall(self._comfy, job_id, self._stall_s, cancelled=lambda: self._held.cancelled)
        following = asyncio.create_task(self._follow(attach=attach))
        stuck = asyncio.create_task(self._stall.watch())
        try:
            await asyncio.wait({following, stuck}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                return await following
            await stuck
            await self._stall.end_comfyui()
            raise Interrupted(job_id, requested=True)
        except Interrupted as error:
            if self._stall.found and not self._held.cancelled:
                raise Stalled(self._stall_s) from error
            raise
        finally:
            await stop([following, stuck])

    async def _follow(self, *, attach: bool) -> RunResult:
        """Find the run in ComfyUI, or send it, and wait for its result."""
        held, job_id = self._held, self._held.job.job_id
        async with Relay(job_id, self._bound.graph, self._publish, watched=self._watched) as relay:

            def take(event: Event) -> None:
                self._take(event)
                relay.take(event)

            self._attached = attach
            if attach:
                with contextlib.suppress(JobLost):
                    return await self._comfy.attach(job_id, on_event=take)
                self._attached = False
            if held.cancelled:
                raise Interrupted(job_id, requested=True)
            if self._record.state.attempts >= MAX_ATTEMPTS:
                raise WornOut(self._record.state.attempts)
            bound = self._bound
            return await self._comfy.run(
                bound.graph, prompt_id=job_id, workflow=bound.workflow, on_event=take, outputs=bound.outputs
            )

    def _take(self, event: Event) -> None:
        if not isinstance(event, Queued):
            self._stall.heard()
        if isinstance(event, Started):
            self._held.started()
            if self._noting is None:
                self._noting = asyncio.create_task(self._note_start(continues=self._attached))
        elif isinstance(event, NodeDone) and self._results is not None:
            self._results.node_done(event)

    async def _publish(self, event: JobEvent) -> None:
        if event.type == "progress":
            self._held.progress = event
        await self._queue.publish(event)

    async def _note_start(self, *, continues: bool) -> None:
        """Write that the run started, so that the next worker knows what this one died of."""
        done, _ = await asyncio.wait({self._lost}, timeout=RUNNING_AFTER_S)
        if done and not self._lost.result():
            return  # It is over already, and its end is written instead.
        start = self._held.start
        if not await self._record.write_running(start.at if start else None, continues=continues):
            # It was cancelled while it waited in ComfyUI's queue, or is to be cancelled.
            self._held.ask_to_cancel()
            await self._comfy.cancel(self._held.job.job_id)
