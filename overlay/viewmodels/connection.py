"""Whether the bridge is there, and what to say and do when it is not."""

from __future__ import annotations

from enum import Enum, auto

from overlay.translate import _
from overlay.viewmodels.signal import Signal

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 5.0


class BridgeState(Enum):
    """What is known of the service."""

    UNKNOWN = auto()
    READY = auto()
    STARTING = auto()
    """It answers and is not ready, or it was just started from here."""
    DOWN = auto()
    REFUSING = auto()
    """It answers, and wants a token that we do not have."""


class Connection:
    """The state of the bridge, and when to look again. ``changed`` is emitted when state or reason change."""

    def __init__(self) -> None:
        self.state = BridgeState.UNKNOWN
        self.reason = ""
        self.startable = True
        """Whether a service started on this machine would be the one that is asked."""
        self.changed = Signal[[]]()
        self._failures = 0
        self._started_here = False
        self._start_problem = ""

    @property
    def banner(self) -> str:
        """What the banner says; empty while nothing is wrong."""
        match self.state:
            case BridgeState.DOWN:
                return _("The image service is not running. {reason}").format(reason=self.reason).strip()
            case BridgeState.STARTING:
                return _("The image service is starting. {reason}").format(reason=self.reason).strip()
            case BridgeState.REFUSING:
                return _("The image service refuses this program: {reason}").format(reason=self.reason)
            case _:
                return ""

    @property
    def can_start(self) -> bool:
        """Whether a Start button makes sense."""
        return self.state is BridgeState.DOWN and self.startable

    @property
    def ready(self) -> bool:
        """Whether a request would be run."""
        return self.state is BridgeState.READY

    @property
    def retry_s(self) -> float:
        """When to look again: soon at first, then less and less often; seldom while all is well."""
        return min(FIRST_RETRY_S * 2**self._failures, LONGEST_RETRY_S)

    def answered(self) -> None:
        """It is ready."""
        self._failures = 0
        self._started_here = False
        self._start_problem = ""
        self._become(BridgeState.READY, "")

    def not_ready(self, reason: str) -> None:
        """It answers, but a request would not be run yet."""
        self._failures = 0
        self._become(BridgeState.STARTING, reason)

    def unreachable(self, reason: str) -> None:
        """Nobody answers. While it is being started from here that is to be expected; why a start failed stays."""
        self._failures = min(self._failures + 1, 10)
        if self._started_here:
            self._become(BridgeState.STARTING, "")
        else:
            self._become(BridgeState.DOWN, self._start_problem or reason)

    def refused(self, reason: str) -> None:
        """It wants a token."""
        self._failures = min(self._failures + 1, 10)
        self._become(BridgeState.REFUSING, reason)

    def starting(self) -> None:
        """It is being started from here."""
        self._failures = 0
        self._started_here = True
        self._start_problem = ""
        self._become(BridgeState.STARTING, "")

    def start_failed(self, reason: str) -> None:
        """What was started here has ended."""
        self._started_here = False
        self._start_problem = reason
        self._become(BridgeState.DOWN, reason)

    def _become(self, state: BridgeState, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self.changed.emit()
