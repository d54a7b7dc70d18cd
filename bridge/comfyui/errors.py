"""Errors of ComfyUI and of the way to it. Each has fields, and a message for people."""

from __future__ import annotations

from typing import Any


class ComfyUIError(Exception):
    """Base of these errors."""


class ComfyUIUnavailable(ComfyUIError):
    """ComfyUI did not answer: it is not running, still starting, or too busy to accept a request."""

    def __init__(self, url: str, reason: str = "") -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"ComfyUI does not answer at {url}" + (f" ({reason})" if reason else ""))


class PromptRejected(ComfyUIError):
    """ComfyUI refused the graph, or would run only a part of it.

    `node_errors` is ComfyUI's own record: `{node_id: {"errors": […], "class_type": …, "dependent_outputs": […]}}`.
    """

    def __init__(self, message: str, node_errors: dict[str, Any]) -> None:
        self.message = message
        self.node_errors = node_errors
        details = "; ".join(node_error_lines(node_errors))
        super().__init__(f"{message}: {details}" if details else message)


class NodeFailed(ComfyUIError):
    """A node raised while the graph ran. `exception_type` is the qualified class name, `traceback` its text."""

    def __init__(self, node_id: str, class_type: str, exception_type: str, message: str, traceback: str) -> None:
        self.node_id = node_id
        self.class_type = class_type
        self.exception_type = exception_type
        self.message = message
        self.traceback = traceback
        super().__init__(f"node {node_id} ({class_type}) failed: {message.strip()}")


class Interrupted(ComfyUIError):
    """The run was stopped before its end. `requested`: by this client's `cancel`, not by someone else."""

    def __init__(self, prompt_id: str = "", *, requested: bool = False) -> None:
        self.prompt_id = prompt_id
        self.requested = requested
        who = "as requested" if requested else "by someone else (the editor, or another client)"
        super().__init__(f"run {prompt_id} was interrupted {who}")


class JobLost(ComfyUIError):
    """ComfyUI does not know a prompt that it had accepted: its queue is in memory and is lost with the process.

    `disconnected`: the connection broke after the prompt was sent, so ComfyUI restarted, and the prompt can be sent
    again. Otherwise someone deleted the prompt from the queue.
    """

    def __init__(self, prompt_id: str = "", *, disconnected: bool = False) -> None:
        self.prompt_id = prompt_id
        self.disconnected = disconnected
        cause = "ComfyUI was restarted" if disconnected else "it was removed from ComfyUI's queue"
        super().__init__(f"run {prompt_id} is in neither ComfyUI's queue nor its history: {cause}")


class Stalled(ComfyUIError):
    """ComfyUI ran the job and showed no progress for long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"ComfyUI showed no progress with this job for {seconds:g} s (IMAGEGEN_STALL_S), as when a GPU hangs; "
            "if it only takes that long, set a higher limit"
        )


class WornOut(ComfyUIError):
    """The job was started several times, and each time ComfyUI or the worker died."""

    def __init__(self, attempts: int) -> None:
        super().__init__(f"ComfyUI or the worker died {attempts} times while it ran this job; it is not tried again")


def node_error_lines(node_errors: dict[str, Any]) -> list[str]:
    """One line for each error in ComfyUI's `node_errors`, with the node, the input and the cause."""
    lines: list[str] = []
    for node_id, record in node_errors.items():
        class_type = record.get("class_type", "?")
        for error in record.get("errors", []):
            detail = error.get("details") or ""
            cause = error.get("message") or error.get("type") or "invalid"
            lines.append(f"node {node_id} ({class_type}): {cause}" + (f" ({detail})" if detail else ""))
    return lines
