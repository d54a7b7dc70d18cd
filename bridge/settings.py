"""How one instance of the service is set up: where it listens, what it uses, and where its files lie.

Every field has an environment variable of the same name with the prefix IMAGEGEN_; the command line comes before it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

APP_NAME = "neurolux-imagegen"
ENV_PREFIX = "IMAGEGEN_"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8005
DEFAULT_JOB_TIMEOUT_S = 600.0
DEFAULT_MAX_PENDING = 64


class SettingsError(ValueError):
    """A setting has a value that cannot be used. The message names the setting, its value and the remedy."""


def default_state_dir() -> Path:
    """`$XDG_STATE_HOME/neurolux-imagegen`, on Linux usually `~/.local/state/neurolux-imagegen`."""
    return Path(platformdirs.user_state_dir(APP_NAME, appauthor=False))


def is_loopback(host: str) -> bool:
    """True for localhost and loopback addresses; a name that is not an address counts as public."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Settings:
    """All settings of one instance. Instances with different `state_dir` and `port` live side by side."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    state_dir: Path = field(default_factory=default_state_dir)
    comfyui_url: str | None = None  # a ComfyUI that already runs; else one is started
    comfyui_dir: Path | None = None  # where to start it from; else it is searched for
    nats_url: str | None = None  # a NATS server that already runs; else one is started
    token: str | None = field(default=None, repr=False)  # asked of every request; needed beyond the loopback
    job_timeout_s: float = DEFAULT_JOB_TIMEOUT_S
    max_pending: int = DEFAULT_MAX_PENDING

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
        """Read IMAGEGEN_HOST, IMAGEGEN_PORT, …; an override that is not None wins. Raises SettingsError."""
        values: dict[str, Any] = {}
        for item in fields(cls):
            text = env.get(ENV_PREFIX + item.name.upper(), "").strip()
            if text:
                values[item.name] = _read(item.name, text)
        values.update((name, value) for name, value in overrides.items() if value is not None)
        if "state_dir" in values:
            values["state_dir"] = Path(values["state_dir"]).expanduser().absolute()
        if values.get("comfyui_dir") is not None:
            values["comfyui_dir"] = Path(values["comfyui_dir"]).expanduser().absolute()
        return cls(**values)

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise SettingsError(f"port {self.port} is not between 1 and 65535")
        for name in ("comfyui_url", "nats_url"):
            url = getattr(self, name)
            if url is not None and "://" not in url:
                scheme = "http" if name == "comfyui_url" else "nats"
                raise SettingsError(f"{name} {url!r} has no scheme; write {scheme}://{url}")
        if self.job_timeout_s <= 0:
            raise SettingsError(f"job_timeout_s {self.job_timeout_s:g} is not above 0")
        if self.max_pending < 1:
            raise SettingsError(f"max_pending {self.max_pending} is not above 0")

    def refuse_open_host(self) -> None:
        """Raise SettingsError for a host beyond this machine without a token: whoever reaches it could use the GPU."""
        if self.token is None and not is_loopback(self.host):
            raise SettingsError(
                f"host {self.host} can be reached from other machines: protect it with --token (or IMAGEGEN_TOKEN), "
                "or listen on 127.0.0.1"
            )

    @property
    def url(self) -> str:
        """Where the gateway is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def comfyui_base(self) -> Path:
        """ComfyUI's --base-directory: models, input, output, user and custom_nodes."""
        return self.state_dir / "comfyui"

    @property
    def models(self) -> Path:
        return self.comfyui_base / "models"

    @property
    def output(self) -> Path:
        return self.comfyui_base / "output"

    @property
    def workflows(self) -> Path:
        """The user's own workflow graphs."""
        return self.state_dir / "workflows"

    @property
    def nats_store(self) -> Path:
        return self.state_dir / "nats"

    @property
    def logs(self) -> Path:
        return self.state_dir / "logs"

    @property
    def runtime_file(self) -> Path:
        """What runs now; present while the service does."""
        return self.state_dir / "runtime.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the one service that may run on this state directory."""
        return self.state_dir / "service.lock"

    def make_directories(self) -> None:
        """Create every folder of the state directory, ComfyUI's included. The user alone may read it."""
        comfyui = self.comfyui_base
        for path in (
            self.state_dir,
            self.models / "diffusers",
            self.output,
            comfyui / "input",
            comfyui / "user",
            comfyui / "custom_nodes",  # ComfyUI does not start without it
            self.workflows,
            self.nats_store,
            self.logs,
        ):
            path.mkdir(parents=True, exist_ok=True, mode=0o700 if path == self.state_dir else 0o777)


def _read(name: str, text: str) -> Any:
    variable = ENV_PREFIX + name.upper()
    try:
        if name in ("port", "max_pending"):
            return int(text)
        if name == "job_timeout_s":
            return float(text)
    except ValueError:
        raise SettingsError(f"{variable}={text!r} is not a number") from None
    return Path(text) if name in ("state_dir", "comfyui_dir") else text
