"""Modes: the saved graphs, as lists show them."""

from __future__ import annotations

from pydantic import Field

from bridge.contract.envelope import ErrorBody
from bridge.contract.wire import WireModel


class ModeSummary(WireModel):
    """One saved graph. `error` says why it cannot be used; the others work on."""

    name: str
    title: str
    description: str
    parameters: list[str]
    images: list[str] = Field(description="Those of the parameters that are images.")
    files: list[str] = Field(default_factory=list, description="Those that are other files.")
    error: ErrorBody | None = None


class ModeList(WireModel):
    """The saved graphs. `modes` are the names of all, broken ones included."""

    modes: list[str]
    details: list[ModeSummary]
