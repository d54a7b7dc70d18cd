"""One run, followed from its submission to its outcome.

The websocket is a hint; ComfyUI's queue and history are the truth. They are checked when the fence `executing: null`
arrives, when a terminal frame arrives without it, when the websocket is silent, dropped or new, and now and then while
progress arrives. So a lost frame costs time, never the run. One case needs no check: a connection that stayed open from
the prompt to the fence, and reported success and every output, has delivered all that the history holds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bridge.comfyui.errors import ComfyUIUnavailable, Interrupted, JobLost
from bridge.comfyui.history import RunResult, read_entry
from bridge.comfyui.messages import (
    Ending,
    Event,
    Finished,
    NodeDone,
    Poke,
    Progress,
    Queued,
    Signal,
    Started,
    Succeeded,
)

SILENCE_S = 1.0
"""Check after this long without a frame of this run."""
SILENCE_UNHEARD_S = 0.25
"""The same for a run whose websocket is gone: its frames are lost."""
UNCHECKED_S = 5.0
"""Check at least this often, however many frames arrive."""
FENCE_GRACE_S = 0.05
"""How long after a terminal frame the fence may take before the history is read without it."""
HISTORY_RETRIES_S = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Waits before each reading of a history entry that must appear."""
RECHECK_S = 0.2
"""Wait between the two checks that must both miss a prompt before it counts as lost."""
LAST_RETRY_S = 2.0
LATE_S = 0.5
"""How long a frame may lag behind the history."""


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """ComfyUI's queue: the ids that run, and those that wait, next first. `asked_at` is when it was requested."""

    running: frozenset[str]
    pending: Mapping[str, int]
    asked_at: float


class Server(Protocol):
    """What following a run needs of the client."""

    unreachable_timeout_s: float

    async def history_entry(self, prompt_id: str) -> dict[str, Any] | None: ...

    async def queue_snapshot(self, *, not_before: float) -> QueueSnapshot: ...

    def hears(self, client_id: str) -> bool: ...

    def distrust(self, client_id: str) -> None: ...


class Run:
    """A prompt on its way. Created before the prompt is sent, so that no frame arrives too early."""

    def __init__(self, prompt_id: str, on_event: Callable[[Event], None] | None) -> None:
        self.prompt_id = prompt_id
        self.client_id = ""  # of the connection that gets its frames
        self.sent = False
        self.cancel_requested = False
        self._on_event = on_event
        self._inbox: asyncio.Queue[Signal] = asyncio.Queue()
        self._clock = asyncio.get_running_loop().time
        self._fresh_from = 0.0  # a queue snapshot older than this says nothing about this run
        self._heard_at = 0.0
        self._asked_at = 0.0
        self._due_at = 0.0  # when to check next
        self._endings: list[float] = []  # after a terminal frame: waits between readings of the history
        self._missed = False  # the last check found it in neither queue nor history
        self._disconnected = False
        self._unreachable_since: float | None = None
        self._retry_s = RECHECK_S
        self._last: dict[str, Event] = {}
        self._started = False
        self._succeeded = False
        self._outputs: dict[str, dict[str, Any]] = {}

    def put(self, signal: Signal) -> None:
        self._inbox.put_nowait(signal)

    def submitted(self, client_id: str, position: int) -> None:
        """ComfyUI accepted the prompt."""
        self.adopted()
        self.client_id = client_id
        self._emit(Queued(position))

    def adopted(self) -> None:
        """ComfyUI had the prompt before; its frames do not come here."""
        self.sent = True
        self._fresh_from = self._heard_at = self._asked_at = self._clock()

    async def follow(self, server: Server) -> RunResult:
        """Wait for the outcome; raises NodeFailed, Interrupted, JobLost, or ComfyUIUnavailable after a long outage."""
        self._due_at = self._clock() + (self._patience(server) if self.client_id else 0)
        while True:
            entry: dict[str, Any] | None = None
            match await self._next_signal():
                case Finished():
                    if self._succeeded and self._started and not self._disconnected and server.hears(self.client_id):
                        return RunResult(self.prompt_id, self._outputs)
                    entry = await self._read_history(server)
                case Ending() as ending:
                    self._succeeded = isinstance(ending, Succeeded)
                    self._endings = list(HISTORY_RETRIES_S)
                    self._due_at = self._clock() + FENCE_GRACE_S
                case None if self._endings:
                    entry = await self._read_history_once(server)
                    self._due_at = self._clock() + self._endings.pop(0)
                case None | Poke():
                    entry = await self._ask(server)
                    if entry is not None and server.hears(self.client_id):
                        await self._hear_out()
                        if self._silent(server):
                            server.distrust(self.client_id)
                case event:
                    self._emit(event)
                    self._endings = []
                    now = self._heard_at = self._clock()
                    self._due_at = min(now + SILENCE_S, self._asked_at + UNCHECKED_S)
            if entry is not None:
                return read_entry(self.prompt_id, entry, cancel_requested=self.cancel_requested)

    async def _next_signal(self) -> Signal | None:
        """The next frame of this run, or None when it is time to check."""
        if not self._inbox.empty():
            return self._inbox.get_nowait()
        try:
            async with asyncio.timeout_at(self._due_at):
                return await self._inbox.get()
        except TimeoutError:
            return None

    async def _read_history(self, server: Server) -> dict[str, Any] | None:
        """The entry after the fence. ComfyUI writes it before it sends the fence; the retries are a precaution."""
        for wait in HISTORY_RETRIES_S:
            entry = await self._read_history_once(server)
            if entry is not None:
                return entry
            await asyncio.sleep(wait)
        self._due_at = self._clock()
        return None

    async def _read_history_once(self, server: Server) -> dict[str, Any] | None:
        try:
            return await server.history_entry(self.prompt_id)
        except ComfyUIUnavailable:
            return None  # `_ask` limits how long it may be down

    async def _ask(self, server: Server) -> dict[str, Any] | None:
        """Check the queue, then the history. The order matters: a run moves from the first to the second."""
        self._asked_at = self._clock()
        self._disconnected |= not server.hears(self.client_id)
        try:
            queue = await server.queue_snapshot(not_before=self._fresh_from)
            if self.prompt_id in queue.running:
                self._emit(Started())
            elif self.prompt_id in queue.pending:
                self._emit(Queued(queue.pending[self.prompt_id] + len(queue.running)))
            else:
                entry = await server.history_entry(self.prompt_id)
                if entry is None:
                    self._miss()
                return entry
        except ComfyUIUnavailable as error:
            self._wait_for_server(server, error)
            return None
        self._missed = False
        self._unreachable_since = None
        self._retry_s = RECHECK_S
        self._due_at = self._clock() + self._patience(server)
        return None

    async def _hear_out(self) -> None:
        """Take the frames that lag behind the history, so that earlier events are reported before the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATE_S):
                while not isinstance(signal := await self._inbox.get(), Finished):
                    if not isinstance(signal, Ending | Poke):
                        self._heard_at = self._clock()
                        self._emit(signal)

    def _wait_for_server(self, server: Server, error: ComfyUIUnavailable) -> None:
        """ComfyUI does not answer: try again later, or give up."""
        now = self._clock()
        self._disconnected = True
        self._unreachable_since = self._unreachable_since or now
        if now - self._unreachable_since > server.unreachable_timeout_s:
            raise error
        self._due_at = now + self._retry_s
        self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)

    def _miss(self) -> None:
        """Neither waiting, running nor done. Once may be bad timing; twice means that it is lost."""
        self._unreachable_since = None
        if not self._missed:
            self._missed = True
            self._fresh_from = self._clock()
            self._due_at = self._fresh_from + RECHECK_S
        elif self.cancel_requested:
            raise Interrupted(self.prompt_id, requested=True)
        else:
            raise JobLost(self.prompt_id, disconnected=self._disconnected)

    def _patience(self, server: Server) -> float:
        return SILENCE_S if server.hears(self.client_id) else SILENCE_UNHEARD_S

    def _silent(self, server: Server) -> bool:
        """True if the run ended and its websocket, which should have reported it, has been silent for a while."""
        return server.hears(self.client_id) and self._clock() - self._heard_at >= SILENCE_S and self._inbox.empty()

    def _emit(self, event: Event) -> None:
        if isinstance(event, Started):
            if self._started:
                return
            self._started = True
        elif isinstance(event, Progress | Queued):
            # ComfyUI reports a step both as `progress` and inside `progress_state`
            key = event.node if isinstance(event, Progress) else ""
            if self._last.get(key) == event:
                return
            self._last[key] = event
        elif isinstance(event, NodeDone):
            self._outputs[event.node] = dict(event.output)
        if self._on_event is not None:
            self._on_event(event)
