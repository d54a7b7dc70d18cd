"""Outputs that several nodes have, and what a node shows and reports beside them."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ...loading.loaded import LoadedPipeline
from .kept_warnings import remember
from .sockets import PipelineType


def pipeline_output(tooltip: str, name: str = "applied") -> io.Custom.Output:
    """The pipeline socket. ``name`` differs from the input's where a node has both."""
    return PipelineType.Output(name, display_name="pipeline", tooltip=tooltip)


def stage_warnings_ui(
    node: type[io.ComfyNode], loaded: LoadedPipeline, warnings: Sequence[str] = (), *, lazy: bool = False
) -> dict[str, list[str]] | None:
    """``warnings`` and those of the stage that just ran, as ``warnings_ui`` returns them."""
    return warnings_ui(node, [*warnings, *loaded.take_warnings()], lazy=lazy)


def warnings_ui(
    node: type[io.ComfyNode], warnings: Sequence[str], *, lazy: bool = False
) -> dict[str, list[str]] | None:
    """``warnings`` for the job's response and as text on the node; None if there are none.

    Every node that may warn calls this whenever it runs, and has ``hidden=[io.Hidden.prompt]``: Result repeats what it
    said where ComfyUI does not run it again. ``lazy``: whether the node took its lazy inputs.
    """
    found = list(dict.fromkeys(warnings))
    remember(node, found, lazy=lazy)
    return {"warnings": found, "text": found} if found else None
