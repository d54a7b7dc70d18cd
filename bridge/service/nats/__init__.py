"""The nats-server of the service: how it is started, what heals it, and whether it stores."""

from __future__ import annotations

from bridge.service.nats.server import nats_child, nats_server_program, with_nats_token
from bridge.service.nats.store import damaged_consumers, find_damaged, set_aside
from bridge.service.nats.watch import NatsWatch, accepts, greets

__all__ = [
    "NatsWatch",
    "accepts",
    "damaged_consumers",
    "find_damaged",
    "greets",
    "nats_child",
    "nats_server_program",
    "set_aside",
    "with_nats_token",
]
