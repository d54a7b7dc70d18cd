"""Whether the service runs and is ready, seen from outside: runtime file, lock and the gateway's /readyz."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, field
from typing import Any

from bridge.service.runtime import is_locked, running_service
from bridge.settings import Settings

READY_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Status:
    """`running`: the supervisor is alive. `ready`: a request would run now. `message` says what is missing."""

    url: str | None = None
    comfyui_url: str | None = None
    nats_url: str | None = None
    pids: dict[str, int] = field(default_factory=dict)
    running: bool = False
    ready: bool = False
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def get_status(settings: Settings) -> Status:
    """The state of the service on this state directory."""
    runtime = running_service(settings)
    if runtime is None:
        if is_locked(settings):
            return Status(running=True, message="starting")
        return Status(message=f"not running on {settings.state_dir}; start it with: imagegen up")
    ready, message = probe_ready(runtime.url, settings.own_token)
    return Status(runtime.url, runtime.comfyui_url, runtime.nats_url, runtime.pids, True, ready, message)


def probe_ready(url: str, token: str | None = None) -> tuple[bool, str]:
    """Ask a gateway's /readyz. Returns True, or False with the cause."""
    request = urllib.request.Request(url + "/readyz", headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a system proxy
    try:
        with opener.open(request, timeout=READY_TIMEOUT_S):
            return True, "ready"
    except urllib.error.HTTPError as error:
        try:
            return False, str(json.loads(error.read())["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return False, f"{url}/readyz answers HTTP {error.code}"
    except OSError:
        return False, "the gateway is starting"
