"""The client of a ComfyUI server, over HTTP and its websocket.

Nothing here imports torch or ComfyUI itself; everything goes through ComfyUI's public routes.
"""

from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import (
    ComfyUIError,
    ComfyUIUnavailable,
    Interrupted,
    JobLost,
    NodeFailed,
    PromptRejected,
)
from bridge.comfyui.history import RunResult
from bridge.comfyui.messages import (
    Cached,
    Download,
    Event,
    Loading,
    NodeDone,
    NodeStarted,
    Preview,
    Progress,
    Queued,
    Started,
)

__all__ = [
    "Cached",
    "ComfyUI",
    "ComfyUIError",
    "ComfyUIUnavailable",
    "Download",
    "Event",
    "Interrupted",
    "JobLost",
    "Loading",
    "NodeDone",
    "NodeFailed",
    "NodeStarted",
    "Preview",
    "Progress",
    "PromptRejected",
    "Queued",
    "RunResult",
    "Started",
]
