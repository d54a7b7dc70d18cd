"""What can go wrong between a program and the service: one family of errors, each with its fields."""

from __future__ import annotations

from bridge.contract import ErrorBody

UNREACHABLE_STATUS = 0
NOT_READY_STATUS = 503


class ClientError(Exception):
    """The service returned an error, or no answer at all.

    `status` is the HTTP status, 0 where there was no answer. `error` is the body of the error: its code, its message
    and the fields that are wrong. `retry_after_s` says when to try again, in seconds, where the service said so.
    """

    def __init__(self, status: int, error: ErrorBody, retry_after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> str:
        """The machine-readable name of the error, such as `unknown_model`."""
        return self.error.code

    @property
    def message(self) -> str:
        """What happened, which value caused it, and what to do."""
        return self.error.message

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later: nothing answered, or the service was not ready."""
        return self.status in (UNREACHABLE_STATUS, NOT_READY_STATUS)


class ServiceUnreachable(ClientError):
    """Nothing answers at `url`, or the connection broke before the answer was complete."""

    def __init__(self, url: str) -> None:
        message = f"no image generation service answers at {url}; start one with 'imagegen up'"
        super().__init__(UNREACHABLE_STATUS, ErrorBody(code="unreachable", message=message))
        self.url = url


class BadUrl(ClientError):
    """The URL of the service cannot be used."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(UNREACHABLE_STATUS, ErrorBody(code="bad_url", message=f"the URL {url!r} {reason}"))
        self.url = url

    @property
    def temporary(self) -> bool:
        """Never: the URL stays what it is."""
        return False


class Unsendable(ClientError):
    """A token, a header or a value that HTTP or JSON cannot carry."""

    def __init__(self, reason: str) -> None:
        message = f"the request cannot be sent: {reason}"
        super().__init__(UNREACHABLE_STATUS, ErrorBody(code="unsendable", message=message))

    @property
    def temporary(self) -> bool:
        """Never: the request stays what it is."""
        return False


class AnswerTimeout(ClientError):
    """The service accepted a request and sent nothing for `timeout_s` seconds."""

    def __init__(self, url: str, path: str, timeout_s: float) -> None:
        message = f"{url} did not answer {path} within {timeout_s:g} s"
        super().__init__(UNREACHABLE_STATUS, ErrorBody(code="timeout", message=message))
        self.timeout_s = timeout_s


class ClientClosed(ClientError):
    """The client was closed, by another thread, while the request was under way."""

    def __init__(self) -> None:
        super().__init__(UNREACHABLE_STATUS, ErrorBody(code="closed", message="the client was closed"))


class UnexpectedAnswer(ClientError):
    """Something at the URL answered, but not as the service does: a proxy, or another program."""

    def __init__(self, status: int, url: str, path: str, retry_after_s: float | None = None) -> None:
        message = f"{url} answered {path} with status {status} and a body that is not the service's; check the URL"
        super().__init__(status, ErrorBody(code="unexpected", message=message), retry_after_s)
