"""A job on a worker: the states that it passes through, and the events that move it.

    TAKEN -> PREPARING -> SUBMITTED -> RUNNING -> COLLECTING -> ENDING -> ENDED

Three branches leave this line. A job that fails or is cancelled goes to ENDING, from any state up to COLLECTING. A
result from ComfyUI's cache goes from SUBMITTED straight to COLLECTING. A job that waits behind a long one while another
worker is idle goes to RELEASED. TRANSITIONS is the whole table.

The delivery of a job is acknowledged only in ENDED and given back only in RELEASED. A job that stops in any other
state, because its worker was killed or its broker stayed away, is delivered again: so none is lost. Its end is written
by compare-and-set (`bridge.worker.job.record`), so of two workers that have the same job only one ends it.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass

from nats.aio.msg import Msg

from bridge import clock
from bridge.contract import Job, JobEvent


class State(enum.Enum):
    """Where a job is on its way through a worker."""

    TAKEN = "taken"
    """The worker has the delivery and has read the job's stored state."""
    PREPARING = "preparing"
    """Its uploads go to ComfyUI and its graph is bound."""
    SUBMITTED = "submitted"
    """ComfyUI has been asked to run it, and has not started. It may be given to a worker that is idle."""
    RUNNING = "running"
    """ComfyUI has started it. It stays in this state when ComfyUI dies and has to run it again."""
    COLLECTING = "collecting"
    """ComfyUI is done with it, and the next job may follow. Its results go to the store."""
    ENDING = "ending"
    """Its final state is being written."""
    ENDED = "ended"
    """The broker has its final state. The delivery may be acknowledged."""
    RELEASED = "released"
    """It goes back to the queue, for a worker that is idle."""

    @property
    def occupies_comfyui(self) -> bool:
        """Whether ComfyUI has work with the job, or is about to."""
        return self in (State.TAKEN, State.PREPARING, State.SUBMITTED, State.RUNNING)


TRANSITIONS: dict[State, frozenset[State]] = {
    State.TAKEN: frozenset({State.PREPARING, State.ENDING}),
    State.PREPARING: frozenset({State.SUBMITTED, State.ENDING}),
    State.SUBMITTED: frozenset({State.RUNNING, State.COLLECTING, State.ENDING, State.RELEASED}),
    State.RUNNING: frozenset({State.COLLECTING, State.ENDING, State.RELEASED}),
    State.COLLECTING: frozenset({State.ENDING}),
    State.ENDING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
    State.RELEASED: frozenset(),
}


class Stop(enum.Enum):
    """Why ComfyUI was asked to stop a job."""

    CANCEL = "cancel"
    """Its caller cancelled it."""
    RELEASE = "release"
    """Another worker is idle and can run it now."""


@dataclass(frozen=True)
class Start:
    """When ComfyUI started a job. Durations come from the monotonic clock: the wall clock may be set during a run."""

    at: float
    """Wall clock, seconds since the epoch."""
    monotonic: float

    @classmethod
    def of(cls, job: Job) -> Start:
        """This moment. A wall clock that was set while the job waited changes nothing."""
        waited = clock.seconds_since(job.submitted_clock)
        at = max(time.time(), job.submitted_at) if waited is None else job.submitted_at + waited
        return cls(at, time.monotonic())

    @property
    def elapsed_s(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self.monotonic


@dataclass(frozen=True)
class Assignment:
    """What does not change while a worker has a job."""

    job: Job
    redelivered: bool
    """Another worker, or an earlier life of this one, had it, and may have sent it to this ComfyUI."""
    taken_at: float
    """Monotonic clock."""


class HeldJob:
    """A job on a worker. Its methods are the events of the table above; nothing else changes its state.

    `changed` is called after every transition. For one event loop; no method waits.
    """

    def __init__(
        self,
        job: Job,
        delivery: Msg,
        *,
        redelivered: bool = False,
        cancelled: bool = False,
        changed: Callable[[HeldJob], None] = lambda _: None,
    ) -> None:
        self.assignment = Assignment(job, redelivered, time.monotonic())
        self._changed = changed
        self._state = State.TAKEN
        self._delivery = delivery
        self._stop = Stop.CANCEL if cancelled else None
        self._start: Start | None = None
        self.progress: JobEvent | None = None
        """The last progress that was published, for gateways that start later."""

    # -- what it is now ----------------------------------------------------------------------------------------------

    @property
    def job(self) -> Job:
        """The job itself."""
        return self.assignment.job

    @property
    def state(self) -> State:
        """Where it is."""
        return self._state

    @property
    def delivery(self) -> Msg:
        """Its newest delivery: the one that is kept alive, and acknowledged at the end."""
        return self._delivery

    @property
    def start(self) -> Start | None:
        """When ComfyUI first started it; None if it was not seen to start."""
        return self._start

    @property
    def cancelled(self) -> bool:
        """Whether its caller cancelled it."""
        return self._stop is Stop.CANCEL

    @property
    def to_be_released(self) -> bool:
        """Whether ComfyUI was asked to stop it for another worker's sake."""
        return self._stop is Stop.RELEASE

    # -- transitions -------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Its uploads and its graph are next."""
        self._move(State.PREPARING)

    def submit(self) -> None:
        """Its graph goes to ComfyUI, perhaps after ComfyUI was asked whether it has the job already."""
        self._move(State.SUBMITTED)

    def started(self) -> None:
        """ComfyUI started it. Only the first start counts: later ones repeat a run that ComfyUI lost."""
        if self._state is State.SUBMITTED:
            self._start = Start.of(self.job)
            self._move(State.RUNNING)

    def collect(self) -> None:
        """ComfyUI is done with it. A result that comes from ComfyUI's cache or history may have had no start."""
        self._move(State.COLLECTING)

    def end(self) -> None:
        """Its outcome is decided."""
        self._move(State.ENDING)

    def ended(self) -> None:
        """The broker has its final state."""
        self._move(State.ENDED)

    def release(self) -> None:
        """ComfyUI stopped it as asked; it goes back to the queue."""
        self._move(State.RELEASED)

    def _move(self, to: State) -> None:
        if to not in TRANSITIONS[self._state]:
            raise RuntimeError(f"job {self.job.job_id} is {self._state.value} and cannot become {to.value}")
        self._state = to
        self._changed(self)

    # -- wishes and deliveries, which leave the state as it is -------------------------------------------------------

    def ask_to_cancel(self) -> None:
        """Its caller wants it cancelled. This outweighs a release."""
        self._stop = Stop.CANCEL

    def ask_to_release(self) -> bool:
        """Another worker could run it now. False if ComfyUI has started it, or if it is being cancelled."""
        if self._state is not State.SUBMITTED or self.cancelled:
            return False
        self._stop = Stop.RELEASE
        return True

    def delivered_again(self, delivery: Msg) -> None:
        """The broker was away, heard nothing of this worker, and delivered the job once more."""
        self._delivery = delivery

    @property
    def held_s(self) -> float:
        """Seconds since the worker took it."""
        return time.monotonic() - self.assignment.taken_at

    @property
    def finished_at(self) -> float:
        """Now, by the wall clock as it was at the start: the clock may have been set since."""
        return self._start.at + self._start.elapsed_s if self._start else time.time()
