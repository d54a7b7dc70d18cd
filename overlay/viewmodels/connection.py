"""The state of the service: whether it is ready, what the banner says, and when to check again."""

from __future__ import annotations

from enum import Enum, auto

from overlay.translate import _
from overlay.viewmodels.signal import Signal

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 5.0


class BridgeState(Enum):
    """What is known about the service."""

    UNKNOWN = auto()
    READY = auto()
    STARTING = auto()
    """It answers but is not ready, or the overlay has just started it."""
    DOWN = auto()
    REFUSING = auto()
    """It answers, and asks for a token that the overlay does not have."""


class Connection:
    """The state of the service. ``changed`` is emitted when the state or its reason changes."""

    def __init__(self) -> None:
        self.state = BridgeState.UNKNOWN
        self.reason = ""
        self.startable = True
        """Whether the overlay would reach a service that is started on this machine."""
        self.changed = Signal[[]]()
        self._failures = 0
        self._started_here = False
        self._start_problem = ""

    @property
    def banner(self) -> str:
        """The text of the banner; empty while the service is ready."""
        match self.state:
            case BridgeState.DOWN:
                return _("The image service is not running. {reason}").format(reason=self.reason).strip()
            case BridgeState.STARTING:
                return _("The image service is starting. {reason}").format(reason=self.reason).strip()
            case BridgeState.REFUSING:
                return _("The image service refused access: {reason}").format(reason=self.reason)
            case _:
                return ""

    @property
    def can_start(self) -> bool:
        """Whether the banner offers a Start button."""
        return self.state is BridgeState.DOWN and self.startable

    @property
    def ready(self) -> bool:
        """Whether a request would run now."""
        return self.state is BridgeState.READY

    @property
    def retry_s(self) -> float:
        """Seconds until the next check; they grow while the service stays away."""
        return min(FIRST_RETRY_S * 2**self._failures, LONGEST_RETRY_S)

    def answered(self) -> None:
        """The service is ready."""
        self._failures = 0
        self._started_here = False
        self._start_problem = ""
        self._become(BridgeState.READY, "")

    def not_ready(self, reason: str) -> None:
        """The service answers, but would not run a request yet."""
        self._failures = 0
        self._become(BridgeState.STARTING, reason)

    def unreachable(self, reason: str) -> None:
        """Nothing answers, as is expected while the overlay starts the service. The reason of a failed start stays."""
        self._failures = min(self._failures + 1, 10)
        if self._started_here:
            self._become(BridgeState.STARTING, "")
        else:
            self._become(BridgeState.DOWN, self._start_problem or reason)

    def refused(self, reason: str) -> None:
        """The service asks for a token."""
        self._failures = min(self._failures + 1, 10)
        self._become(BridgeState.REFUSING, reason)

    def starting(self) -> None:
        """The overlay is starting the service."""
        self._failures = 0
        self._started_here = True
        self._start_problem = ""
        self._become(BridgeState.STARTING, "")

    def start_failed(self, reason: str) -> None:
        """The service that the overlay started has stopped."""
        self._started_here = False
        self._start_problem = reason
        self._become(BridgeState.DOWN, reason)

    def _become(self, state: BridgeState, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self.changed.emit()
