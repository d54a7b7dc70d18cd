"""The bridge's errors. Each has an HTTP status and a code, and every API answers it with the same envelope.

Code raises them freely; only `api/`, the worker and the command line catch them.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.contract.envelope import ErrorBody, ErrorDetail, ErrorEnvelope
from bridge.contract.texts import shorten

RETRY_SOON_S = 5
MAX_MESSAGE_CHARS = 2000
MAX_DETAIL_CHARS = 500
MAX_FIELD_CHARS = 200
MAX_DETAILS = 50
"""What an error holds at most, whatever the caller sent."""


class BridgeError(Exception):
    """Any error that a caller receives. `retry_after_s` becomes the Retry-After header."""

    status = 500
    code = "internal_error"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, field: str | None = None, details: Sequence[ErrorDetail] = ()) -> None:
        message = shorten(message, MAX_MESSAGE_CHARS)
        super().__init__(message)
        self.message = message
        self.field = _short_field(field)
        self.details = [_short_detail(detail) for detail in details[:MAX_DETAILS]]

    def body(self) -> ErrorBody:
        """The error in its wire format."""
        return ErrorBody(code=self.code, message=self.message, field=self.field, details=self.details)

    def envelope(self) -> ErrorEnvelope:
        """The error as an API answers it."""
        return ErrorEnvelope(error=self.body())


def _short_field(field: str | None) -> str | None:
    return None if field is None else shorten(field, MAX_FIELD_CHARS)


def _short_detail(detail: ErrorDetail) -> ErrorDetail:
    return ErrorDetail(field=_short_field(detail.field), message=shorten(detail.message, MAX_DETAIL_CHARS))


class NotJson(BridgeError):
    """The body cannot be parsed."""

    status, code = 400, "not_json"


class BadForm(BridgeError):
    """The multipart/form-data body cannot be read."""

    status, code = 400, "bad_form"


class Unauthorized(BridgeError):
    """No token, or the wrong one."""

    status, code = 401, "unauthorized"


class ForeignOrigin(BridgeError):
    """A web page of another origin tried to use the service through a visitor's browser."""

    status, code = 403, "foreign_origin"


class UnknownModel(BridgeError):
    """No model has that name."""

    status, code = 404, "unknown_model"


class UnknownMode(BridgeError):
    """No saved graph has that name."""

    status, code = 404, "unknown_mode"


class UnknownJob(BridgeError):
    """No job has that id, or it is older than the retention."""

    status, code = 404, "unknown_job"


class UnknownWorker(BridgeError):
    """No worker of that name has been heard of lately."""

    status, code = 404, "unknown_worker"


class QueuePaused(BridgeError):
    """The queue is paused: a job would be accepted, and would wait."""

    status, code = 503, "paused"
    retry_after_s = RETRY_SOON_S


class ImageExpired(BridgeError):
    """The job is known, and the retention has removed its image."""

    status, code = 410, "image_expired"


class RangeNotSatisfiable(BridgeError):
    """The Range is outside the image."""

    status, code = 416, "range_not_satisfiable"


class IdempotencyMismatch(BridgeError):
    """The Idempotency-Key was used with another request."""

    status, code = 422, "idempotency_mismatch"


class SlowBody(BridgeError):
    """The body did not arrive in time."""

    status, code = 408, "slow_body"


class BodyTooLarge(BridgeError):
    """The body exceeds the limit."""

    status, code = 413, "body_too_large"


class UnsupportedMediaType(BridgeError):
    """This endpoint does not read the Content-Type."""

    status, code = 415, "unsupported_media_type"


class InvalidRequest(BridgeError):
    """One or more values are invalid; `details` lists all of them."""

    status, code = 422, "invalid_request"

    @classmethod
    def of(cls, details: Sequence[ErrorDetail]) -> InvalidRequest:
        """One error for all bad fields, with the message of the first."""
        more = f" (and {len(details) - 1} more, see details)" if len(details) > 1 else ""
        first = shorten(details[0].message, MAX_DETAIL_CHARS)
        return cls(first + more, field=details[0].field, details=details)


class QueueFull(BridgeError):
    """The queue holds as many jobs as it may."""

    status, code = 429, "queue_full"
    retry_after_s = RETRY_SOON_S


class TooManyRequests(BridgeError):
    """A client exceeded its request rate."""

    status, code = 429, "too_many_requests"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyWaits(BridgeError):
    """The gateway holds as many waiting requests and event streams as it may."""

    status, code = 429, "too_many_waits"
    retry_after_s = RETRY_SOON_S


class TooManyBodies(BridgeError):
    """The bodies that the gateway is reading use all the memory that they may."""

    status, code = 429, "too_many_bodies"
    retry_after_s = RETRY_SOON_S


class Unavailable(BridgeError):
    """ComfyUI, the worker or NATS is down or still starting."""

    status, code = 503, "unavailable"
    retry_after_s = RETRY_SOON_S


class UnreadableRecord(BridgeError):
    """What is stored of a job cannot be read. `revision` is that of its state, for who wants to replace it."""

    status, code = 503, "unreadable_record"

    def __init__(self, message: str, *, revision: int) -> None:
        super().__init__(message)
        self.revision = revision


class StorageFull(BridgeError):
    """The disk, or the space that the NATS server may use of it, is full."""

    status, code = 503, "storage_full"
    retry_after_s = RETRY_SOON_S


class TimedOut(BridgeError):
    """The job did not end in time. It continues, and its id still gives its state."""

    status, code = 504, "timeout"


class JobCancelled(BridgeError):
    """The job was cancelled before it ended."""

    status, code = 409, "cancelled"


class WorkerError(BridgeError):
    """An error that a worker reports, such as the cause of a failed job. Its body is passed on as it came."""

    def __init__(self, error: ErrorBody) -> None:
        super().__init__(error.message, field=error.field, details=error.details)
        self.code = error.code
        self.status = FAILURE_STATUS.get(error.code, 500)
        if self.status == 503:
            self.retry_after_s = RETRY_SOON_S


FAILURE_STATUS = {
    "invalid_request": 422,
    "unknown_model": 404,
    "image_expired": 410,
    "weights_missing": 503,
    "download_failed": 503,
    "access_denied": 503,
    "comfyui_unavailable": 503,
    "unavailable": 503,
    "storage_full": 503,
    "unreadable_record": 503,
    "cancelled": 409,
}
"""HTTP status by error code. Every other code (`out_of_memory`, `node_failed`, …) is a 500."""
