"""Turns the error with which a job failed into one that a caller can act on: a code, a cause and a remedy."""

from __future__ import annotations

from bridge.comfyui.errors import (
    ComfyUIError,
    ComfyUIUnavailable,
    Interrupted,
    JobLost,
    NodeFailed,
    PromptRejected,
    Stalled,
    WornOut,
)
from bridge.contract import BridgeError, ErrorBody, ErrorDetail
from bridge.modes.graphs import Graph

PACK_ERRORS = {
    "ModelNotFound": "unknown_model",
    "WeightsMissing": "weights_missing",
    "DownloadFailed": "download_failed",
    "AccessDenied": "access_denied",
    "InvalidParameter": "invalid_request",
    "OutOfMemory": "out_of_memory",
    "OutOfMemoryError": "out_of_memory",
}
"""Our error code for each class of exception. The pack's own messages already name a remedy."""
DISK_FULL_SIGNS = ("[Errno 28]", "No space left on device")
OUT_OF_MEMORY_REMEDY = "choose a smaller size, fewer images or a leaner offload, or close what else uses the GPU"


def error_body(error: Exception, graph: Graph) -> ErrorBody:
    """The error that a failed job reports. `graph` names the node that failed."""
    match error:
        case BridgeError():
            return error.body()
        case NodeFailed():
            return _node_failed(error, graph)
        case PromptRejected():
            return _rejected(error, graph)
        case Interrupted():
            return ErrorBody(code="cancelled", message="the run was interrupted in ComfyUI")
        case JobLost():
            return ErrorBody(
                code="comfyui_unavailable", message="ComfyUI restarted again and again before it ran the job"
            )
        case WornOut():
            return ErrorBody(code="worker_died", message=str(error))
        case Stalled():
            return ErrorBody(code="stalled", message=str(error))
        case ComfyUIUnavailable():
            return ErrorBody(code="comfyui_unavailable", message=f"ComfyUI does not answer: {error}; try again")
        case ComfyUIError():
            return ErrorBody(code="node_failed", message=str(error))
        case _:
            return ErrorBody(code="internal_error", message=f"{type(error).__name__}: {error}")


def _node_failed(error: NodeFailed, graph: Graph) -> ErrorBody:
    kind = error.exception_type.rpartition(".")[2]
    code = PACK_ERRORS.get(kind, "node_failed")
    message = error.message.strip() or kind
    if kind == "OutOfMemoryError":
        message = f"out of memory in {_title(error.node_id, graph)}: {OUT_OF_MEMORY_REMEDY}"
    elif any(sign in message for sign in DISK_FULL_SIGNS):
        code = "storage_full"
        message = f"the disk of ComfyUI is full, {_title(error.node_id, graph)} could not write: free some space"
    elif code == "node_failed":
        message = f"{_title(error.node_id, graph)} failed: {kind}: {message}"
    return ErrorBody(code=code, message=message)


def _rejected(error: PromptRejected, graph: Graph) -> ErrorBody:
    details = [
        ErrorDetail(
            field=None,
            message=f"{_title(node_id, graph)}: {problem.get('message', 'invalid')}: {problem.get('details', '')}",
        )
        for node_id, node in (error.node_errors or {}).items()
        for problem in node.get("errors", [])
    ]
    message = details[0].message if details else str(error)
    return ErrorBody(code="graph_rejected", message=f"ComfyUI refused the graph: {message}", details=details)


def _title(node_id: str, graph: Graph) -> str:
    node = graph.get(str(node_id), {})
    return f"node {node_id} ({node.get('_meta', {}).get('title') or node.get('class_type', 'unknown')})"
