"""The outcome of a finished run, from its entry in ComfyUI's history.

The messages decide, not `status_str`: an interrupted run has the same `status_str` as a failed one, and
`PromptExecutor` keeps its `success` flag from the run before when a graph fails before its first node
(ComfyUI 0.3.75 `execution.py: execute_async`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.comfyui.errors import ComfyUIError, Interrupted, NodeFailed


@dataclass(frozen=True)
class RunResult:
    """A successful run. `outputs` is ComfyUI's UI output by node id, e.g. `{"9": {"images": [{filename, …}]}}`."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    messages: tuple[tuple[str, dict[str, Any]], ...] = field(default=(), repr=False)

    def first(self, key: str) -> dict[str, Any]:
        """The first record under `key` in any node's output; empty if there is none."""
        return next((output[key][0] for output in self.outputs.values() if output and output.get(key)), {})

    def texts(self, key: str) -> list[str]:
        """The texts under `key` in all nodes' outputs, without duplicates."""
        return list(dict.fromkeys(text for output in self.outputs.values() for text in (output or {}).get(key, [])))


def read_entry(prompt_id: str, entry: Mapping[str, Any], *, cancel_requested: bool) -> RunResult:
    """The result of a finished run; raises NodeFailed or Interrupted if it did not succeed."""
    status = entry.get("status") or {}
    messages = tuple((str(kind), dict(data or {})) for kind, data in status.get("messages") or ())
    by_kind = dict(messages)
    if "execution_interrupted" in by_kind:
        raise Interrupted(prompt_id, requested=cancel_requested)
    if "execution_error" in by_kind:
        raise _node_failed(by_kind["execution_error"])
    if "execution_success" not in by_kind and status.get("status_str", "success") != "success":
        raise ComfyUIError(f"run {prompt_id} ended with status {status.get('status_str')!r} and no cause")
    # a cached node's output may be null, and a graph without UI output has none at all
    outputs = {str(node): dict(output) for node, output in (entry.get("outputs") or {}).items() if output}
    return RunResult(prompt_id, outputs, messages)


def _node_failed(data: Mapping[str, Any]) -> NodeFailed:
    trace = data.get("traceback") or ()
    return NodeFailed(
        node_id=str(data.get("node_id", "")),
        class_type=str(data.get("node_type", "")),
        exception_type=str(data.get("exception_type", "")),
        message=str(data.get("exception_message", "")),
        traceback=trace if isinstance(trace, str) else "".join(str(line) for line in trace),
    )
