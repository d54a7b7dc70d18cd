"""What a process that a test starts must not inherit from the shell that started the tests."""

from __future__ import annotations

import signal


def take_sigint() -> None:
    """`preexec_fn` of a process that is to hear Ctrl-C: a test run started in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
