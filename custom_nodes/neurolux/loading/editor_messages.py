"""Messages of a running node to the one client that queued its prompt.

ComfyUI sends to every open editor what names no client, and the front end shows a text on whichever node of the open
graph has that id: somebody else's graph would show it, and save it among its values.
"""

from __future__ import annotations

from typing import Any

from comfy_execution.utils import get_executing_context
from server import PromptServer


class EditorMessages:
    """Sends for the node that runs now. Outside of a prompt, or of one that names no client, nothing is sent."""

    def __init__(self) -> None:
        context = get_executing_context()
        self._prompt_id = context.prompt_id if context is not None else None
        self._node = context.node_id if context is not None else None

    def text(self, text: str) -> None:
        """A line under the node."""
        server = PromptServer.instance
        if self._node is not None and server is not None and server.client_id is not None:
            server.send_progress_text(text, self._node, server.client_id)

    def event(self, name: str, **data: Any) -> None:
        """A message of the pack's own, such as ``neurolux.loading``; web/js/messages.js names them all."""
        server = PromptServer.instance
        if server is not None and server.client_id is not None:
            server.send_sync(name, {"prompt_id": self._prompt_id, "node": self._node, **data}, server.client_id)
