"""The stored state of a job, as its worker last read it. This is the one place where a worker writes states.

Every write is a compare-and-set: what a gateway or another worker wrote meanwhile is read again, never overwritten.
"""

from __future__ import annotations

from bridge.broker.jobs import JobQueue, StoredState
from bridge.contract import Job, JobState, JobStatus
from bridge.worker.patience import insist


class JobRecord:
    """The state of one job. All methods wait for a broker that is away, and raise Unavailable if it stays away."""

    def __init__(self, queue: JobQueue, stored: StoredState, worker_id: str) -> None:
        self._queue = queue
        self._stored = stored
        self._worker_id = worker_id

    @classmethod
    async def open(cls, queue: JobQueue, job: Job, worker_id: str) -> JobRecord:
        """Read the state of a job that was just delivered. Does not wait: the delivery is still in the queue."""
        return cls(queue, await queue.begin(job), worker_id)

    @property
    def state(self) -> JobState:
        """The state that was last read or written."""
        return self._stored.state

    async def write_running(self, started_at: float | None, *, continues: bool) -> bool:
        """Write that a run started, so that the next worker knows of it if this one dies. False: it is cancelled.

        `continues`: the run was sent by an earlier worker. If that worker counted it, it is not counted again.
        """
        while True:
            state = self.state
            counted = continues and state.status is JobStatus.RUNNING
            running = state.moved(
                JobStatus.RUNNING,
                started_at=started_at,
                attempts=state.attempts + (not counted),
                worker=self._worker_id,
            )
            if await self._write(running):
                return True
            await self._read_again()
            if self.state.status.final or self.state.cancel_requested:
                return False

    async def write_end(
        self, status: JobStatus, *, started_at: float | None, finished_at: float, **changes: object
    ) -> JobState | None:
        """Write the final state and return it. None: another process has written one before."""
        while not self.state.status.final:
            state = self.state
            ended = state.moved(
                status,
                # A run that was too short to be written as running counts too.
                attempts=max(state.attempts, started_at is not None),
                started_at=started_at or state.started_at or finished_at,
                finished_at=finished_at,
                worker=self._worker_id,
                **changes,
            )
            if await self._write(ended):
                return self.state  # Without what the server would not take.
            await self._read_again()
            if self.state == ended:  # It was written; only the broker's answer was lost.
                return ended
        return None

    async def _write(self, state: JobState) -> bool:
        written = await insist(lambda: self._queue.advance(StoredState(state, self._stored.revision)))
        if written is not None:
            self._stored = written
        return written is not None

    async def _read_again(self) -> None:
        self._stored = await insist(lambda: self._queue.stored_state(self.state.job_id))
