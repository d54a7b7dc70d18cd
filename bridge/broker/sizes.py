"""What fits into one NATS message. Jobs are checked before they are queued, states before they are written.

A job's state grows while the job runs: times, results, warnings, an error. So a job is accepted only if its state
leaves space for that. An end that takes more space than that is cut, and fails if its list of results does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge.broker.nats_client import message_bytes
from bridge.contract import BodyTooLarge, ErrorBody, Job, JobState, JobStatus

GROWTH_BYTES = 64 * 1024
"""What a state may grow by. A server whose max_payload is small gets a quarter of that."""
WRAPPING_BYTES = 1024
"""What an event, a header or an answer adds to the state that it carries."""
MAX_TEXTS = 20
MAX_TEXT_CHARS = 500
MAX_MESSAGE_CHARS = 2000


def check_fits(job: Job, headers: Mapping[str, str], max_payload: int) -> None:
    """Raise BodyTooLarge if the server would refuse the job, or any state that it can reach."""
    growth = min(GROWTH_BYTES, max_payload // 4)
    as_job = message_bytes(job.model_dump_json().encode(), headers) + WRAPPING_BYTES
    as_state = len(JobState.queued(job).model_dump_json().encode()) + WRAPPING_BYTES + growth
    if max(as_job, as_state) > max_payload:
        size = max(as_job, as_state - growth)
        raise BodyTooLarge(
            f"the request takes {size} bytes in the queue; the limit is {max_payload - growth}, the max_payload "
            f"of the NATS server ({max_payload}) less {growth} bytes for the job's end. Send less text, or several "
            "requests"
        )


def bounded(state: JobState, max_payload: int) -> JobState:
    """The state, if the server takes it; else with its texts cut, and where that is not enough as a failure."""
    limit = max_payload - WRAPPING_BYTES
    size = _bytes(state)
    if size <= limit:
        return state
    shorter = state.model_copy(update={"warnings": _few(state.warnings), "error": _short(state.error)})
    if _bytes(shorter) <= limit:
        return shorter
    failed = shorter.model_copy(
        update={
            "status": JobStatus.FAILED,
            "images": [],
            "image_format": None,
            "loaded": None,
            "error": shorter.error
            or ErrorBody(
                code="result_too_large",
                message=f"the job made {len(state.images)} results, whose record of {size} bytes exceeds the "
                f"{max_payload} bytes that the NATS server takes (max_payload): ask for fewer images at once",
            ),
        }
    )
    if _bytes(failed) <= limit:
        return failed
    return failed.model_copy(update={"warnings": [], "parameters": {}, "callback_url": None})


def _bytes(state: JobState) -> int:
    return len(state.model_dump_json().encode())


def _few(texts: list[str]) -> list[str]:
    kept = [_cut(text, MAX_TEXT_CHARS) for text in texts[:MAX_TEXTS]]
    return [*kept, f"{len(texts) - MAX_TEXTS} more warnings are left out"] if len(texts) > MAX_TEXTS else kept


def _short(error: ErrorBody | None) -> ErrorBody | None:
    if error is None:
        return None
    details = [
        detail.model_copy(update={"message": _cut(detail.message, MAX_TEXT_CHARS)})
        for detail in error.details[:MAX_TEXTS]
    ]
    return error.model_copy(update={"message": _cut(error.message, MAX_MESSAGE_CHARS), "details": details})


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[:chars]}… ({len(text)} characters)"
