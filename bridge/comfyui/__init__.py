"""ComfyUI seen from outside: its HTTP and websocket client, its installation and its child process.

Nothing in here imports torch or ComfyUI itself; everything goes through ComfyUI's public routes and command line.
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
