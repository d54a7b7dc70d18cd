"""Reports progress on the node that ComfyUI is running: its bar, its text, and the pack's own websocket messages."""

from __future__ import annotations

from ..planning.records import gigabytes
from ..weights.progress import LoadReporter, Throttle, Transfer, transfer_text
from .editor_messages import EditorMessages
from .node_bar import NodeBar

DOWNLOAD_EVENT = "neurolux.download"
LOADING_EVENT = "neurolux.loading"


class NodeReporter(LoadReporter):
    """Reports during one node's execution. Every report stops the transfer when the user has interrupted.

    The bar comes after the pack's own message: from that message the bridge knows that the bar counts bytes.
    """

    def __init__(self) -> None:
        self._messages = EditorMessages()
        self._phase = ""
        self._bar = NodeBar(100)
        self._throttle = Throttle()

    def check(self) -> None:
        self._bar.check()

    def downloading(self, transfer: Transfer) -> None:
        self._enter("download")
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
        self._bar.show(transfer.done, max(transfer.total, 1))

    def reading(self, model: str, done: int, total: int) -> None:
        self._enter(f"load {model}")
        finished = done >= total
        if not self._throttle.due(last=finished):
            return
        # The editor keeps a node's last text, and an empty one does not clear it.
        of = gigabytes(total)
        self._messages.text(f"Loaded {model}: {of}" if finished else f"Loading {model}: {gigabytes(done)} of {of}")
        self._messages.event(LOADING_EVENT, model=model, value=done, maximum=total)
        self._bar.show(done, max(total, 1))

    def _enter(self, phase: str) -> None:
        """Raise InterruptProcessingException if the user has interrupted; begin a bar if ``phase`` is a new one."""
        self.check()
        if phase != self._phase:
            self._phase, self._bar, self._throttle = phase, NodeBar(100), Throttle()
