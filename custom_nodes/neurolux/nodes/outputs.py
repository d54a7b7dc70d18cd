"""Outputs that several nodes have, and what a node shows and reports beside them."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ..loading.loaded import LoadedPipeline
from .sockets import PipelineType


def pipeline_output(tooltip: str, name: str = "applied") -> io.Custom.Output:
    """The pipeline socket. ``name`` differs from the input's where a node has both."""
    return PipelineType.Output(name, display_name="pipeline", tooltip=tooltip)


def stage_warnings_ui(loaded: LoadedPipeline, warnings: Sequence[str] = ()) -> dict[str, list[str]] | None:
    """``warnings`` and those of the stage that just ran, as ``warnings_ui`` returns them."""
    return warnings_ui(list(dict.fromkeys([*warnings, *loaded.take_warnings()])))


def warnings_ui(warnings: list[str]) -> dict[str, list[str]] | None:
    """``warnings`` for the job's response and as text on the node; None if there are none."""
    return {"warnings": warnings, "text": warnings} if warnings else None
