"""The JSON form of an error, the same in every API."""

from __future__ import annotations

from pydantic import Field

from bridge.contract.wire import WireModel


class ErrorDetail(WireModel):
    """One bad field."""

    field: str | None = None
    message: str


class ErrorBody(WireModel):
    """What went wrong and what to do. `field` is the first bad field; `details` lists all of them."""

    code: str
    message: str
    field: str | None = None
    details: list[ErrorDetail] = Field(default_factory=list)


class ErrorEnvelope(WireModel):
    """The body of every error, in every API."""

    error: ErrorBody
