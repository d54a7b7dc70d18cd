"""The states of a job on a worker: which event moves it where, and that nothing else does."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.contract import Job, JobKind
from bridge.worker.job.held import HeldJob, State

JOB = Job(
    job_id="8b6a2f0e-8c2e-4a57-9c4e-5c8f4e2a1d11", kind=JobKind.GENERATE, mode="paint", parameters={}, submitted_at=1.0
)
EVENTS: dict[str, Callable[[HeldJob], None]] = {
    "prepare": HeldJob.prepare,
    "submit": HeldJob.submit,
    "started": HeldJob.started,
    "collect": HeldJob.collect,
    "end": HeldJob.end,
    "ended": HeldJob.ended,
    "release": HeldJob.release,
}
WAYS = {
    State.TAKEN: "",
    State.PREPARING: "prepare",
    State.SUBMITTED: "prepare submit",
    State.RUNNING: "prepare submit started",
    State.COLLECTING: "prepare submit started collect",
    State.ENDING: "end",
    State.ENDED: "end ended",
    State.RELEASED: "prepare submit release",
}
"""How a job gets into each state."""
MOVES = {
    State.TAKEN: {"prepare": State.PREPARING, "end": State.ENDING},
    State.PREPARING: {"submit": State.SUBMITTED, "end": State.ENDING},
    State.SUBMITTED: {
        "started": State.RUNNING,
        "collect": State.COLLECTING,
        "end": State.ENDING,
        "release": State.RELEASED,
    },
    State.RUNNING: {"collect": State.COLLECTING, "end": State.ENDING, "release": State.RELEASED},
    State.COLLECTING: {"end": State.ENDING},
    State.ENDING: {"ended": State.ENDED},
    State.ENDED: {},
    State.RELEASED: {},
}


def delivery() -> Msg:
    return Msg(_client=Client(), subject="jobs")


def held_in(state: State, seen: list[State] | None = None) -> HeldJob:
    held = HeldJob(JOB, delivery(), changed=lambda held: seen.append(held.state) if seen is not None else None)
    for event in WAYS[state].split():
        EVENTS[event](held)
    assert held.state is state
    return held


@pytest.mark.parametrize("state", State, ids=lambda state: state.value)
@pytest.mark.parametrize("event", EVENTS)
def test_an_event_moves_a_job_only_where_it_may(state: State, event: str) -> None:
    held = held_in(state)
    if event in MOVES[state]:
        EVENTS[event](held)
        assert held.state is MOVES[state][event]
    elif event == "started":  # ComfyUI starts it again, or reports late: the first start counts.
        start = held.start
        held.started()
        assert (held.state, held.start) == (state, start)
    else:
        with pytest.raises(RuntimeError, match=f"is {state.value} and cannot become"):
            EVENTS[event](held)


def test_every_transition_is_reported_once_and_in_order() -> None:
    seen: list[State] = []
    held = held_in(State.COLLECTING, seen)
    held.end()
    held.ended()
    assert seen == [state for state in State if state not in (State.TAKEN, State.RELEASED)]


def test_only_a_job_that_waits_in_comfyui_can_be_released() -> None:
    assert [state for state in State if held_in(state).ask_to_release()] == [State.SUBMITTED]


def test_a_cancellation_outweighs_a_release() -> None:
    held = held_in(State.SUBMITTED)
    assert held.ask_to_release()
    assert held.to_be_released
    held.ask_to_cancel()
    assert held.cancelled
    assert not held.to_be_released
    assert not held.ask_to_release()


def test_the_newest_delivery_is_the_one_to_acknowledge() -> None:
    held = held_in(State.RUNNING)
    again = delivery()
    held.delivered_again(again)
    assert held.delivery is again
    assert held.state is State.RUNNING


def test_a_clock_that_is_set_during_a_run_does_not_move_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    held = held_in(State.RUNNING)
    assert held.start
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    assert 0 <= held.finished_at - held.start.at < 60
