"""Reports progress on the node that ComfyUI is running: its bar, its text, and the pack's own websocket messages."""

from __future__ import annotations

import comfy.utils

from ..planning.records import gigabytes
from ..weights.progress import LoadReporter, Throttle, Transfer, transfer_text
from .editor_messages import EditorMessages

DOWNLOAD_EVENT = "neurolux.download"
LOADING_EVENT = "neurolux.loading"


class NodeReporter(LoadReporter):
    """Reports during one node's execution. ComfyUI's bar raises when the user interrupts, which stops the transfer.

    The bar comes after the pack's own message: from that message the bridge knows that the bar counts bytes.
    """

    def __init__(self) -> None:
        self._messages = EditorMessages()
        self._bar = comfy.utils.ProgressBar(100)
        self._throttle = Throttle()

    def downloading(self, transfer: Transfer) -> None:
        finished = transfer.done >= transfer.total
        if not self._throttle.due(last=finished):
            return
        self._messages.text(transfer_text(transfer))
        self._messages.event(
            DOWNLOAD_EVENT,
            repo=transfer.repo,
            file=transfer.file,
            done_bytes=transfer.done,
            total_bytes=transfer.total,
            bytes_per_second=round(transfer.bytes_per_second),
        )
        self._bar.update_absolute(transfer.done, max(transfer.total, 1))

    def reading(self, model: str, done: int, total: int) -> None:
        finished = done >= total
        if not self._throttle.due(last=finished):
            return
        # The editor keeps a node's last text, and an empty one does not clear it.
        of = gigabytes(total)
        self._messages.text(f"Loaded {model}: {of}" if finished else f"Loading {model}: {gigabytes(done)} of {of}")
        self._messages.event(LOADING_EVENT, model=model, value=done, maximum=total)
        self._bar.update_absolute(done, max(total, 1))
