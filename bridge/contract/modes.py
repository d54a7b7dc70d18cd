"""Modes: the saved graphs, as lists show them."""

from __future__ import annotations

from pydantic import Field

from bridge.contract.envelope import ErrorBody
from bridge.contract.wire import WireModel


class ModeSummary(WireModel):
    """One saved graph. `error` says why it cannot be used; other modes are not affected."""

    name: str
    title: str
    description: str
    parameters: list[str]
    images: list[str] = Field(description="The parameters that are images.")
    files: list[str] = Field(default_factory=list, description="The parameters that are other files.")
    error: ErrorBody | None = None


class ModeList(WireModel):
    """The saved graphs. `modes` lists all names, those of broken graphs included."""

    modes: list[str]
    details: list[ModeSummary]
