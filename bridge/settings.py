"""How one instance of the service is set up: where it listens, what it uses, and where its files lie.

Every field has an environment variable of the same name with the prefix IMAGEGEN_; the command line comes before it.
What a field means is written beside it: `--help` and docs/CONFIGURATION.md say the same words.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import platformdirs

from bridge.broker.connection import DEFAULT_PREFIX, Access, Names
from bridge.broker.stores import Retention

APP_NAME = "neurolux-imagegen"
ENV_PREFIX = "IMAGEGEN_"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8005
DEFAULT_JOB_TIMEOUT_S = 600.0
DEFAULT_MAX_PENDING = 64
OPEN_RATE_PER_MINUTE = 600
"""Requests a minute from one client where other machines can reach the service."""
LOG_FORMATS = ("human", "json")
WORKER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
LOG_LEVELS = ("debug", "info", "warning", "error")


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


def setting(default: Any = MISSING, meaning: str = "", **options: Any) -> Any:
    """A field of Settings. `meaning` is its help text; `shown` stands for a default that a person should read."""
    shown = options.pop("shown", None)
    return field(default=default, metadata={"meaning": meaning, "shown": shown}, **options)


@dataclass(frozen=True)
class Settings:
    """All settings of one instance. Instances with different `state_dir` and `port` live side by side."""

    host: str = setting(DEFAULT_HOST, "address to listen on; one beyond this machine needs a token")
    port: int = setting(DEFAULT_PORT, "port to listen on")
    state_dir: Path = setting(
        meaning="folder of this instance's files (see 'imagegen paths')",
        default_factory=default_state_dir,
        shown="the XDG state folder",
    )
    comfyui_url: str | None = setting(
        None, "use a ComfyUI that runs already, such as http://127.0.0.1:8188", shown="start one"
    )
    comfyui_dir: Path | None = setting(
        None, "start this ComfyUI (the folder with main.py)", shown="a comfy-cli workspace, else the pinned copy"
    )
    comfyui_output_dir: Path | None = setting(
        None,
        "ComfyUI's output folder as this machine sees it: results are read there, not over HTTP",
        shown="that of the ComfyUI that 'imagegen up' starts; none for another",
    )
    nats_url: str | None = setting(
        None, "use a NATS server that runs already, such as nats://127.0.0.1:4222", shown="start one"
    )
    nats_prefix: str = setting(
        DEFAULT_PREFIX, "how our NATS subjects begin; services on one cluster with different prefixes do not meet"
    )
    nats_user: str | None = setting(None, "user name for the NATS server")
    nats_password: str | None = setting(None, "password for the NATS server", repr=False)
    nats_token: str | None = setting(None, "token for the NATS server", repr=False)
    nats_credentials: Path | None = setting(None, "credentials file (.creds) for the NATS server")
    nats_tls_ca: Path | None = setting(
        None, "certificate authority of the NATS server (PEM)", shown="those of the system"
    )
    nats_tls_cert: Path | None = setting(None, "our certificate for the NATS server (PEM), with nats_tls_key")
    nats_tls_key: Path | None = setting(None, "the key of nats_tls_cert (PEM)")
    worker_id: str | None = setting(None, "name of this worker, unique among all", shown="made of host and port")
    token: str | None = setting(
        None, "what every request must carry; on the command line other users of this machine can read it", repr=False
    )
    token_file: Path | None = setting(
        None, "file with one token a line, each of them valid; lines that begin with # are comments"
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "names by which clients may call the service, with commas between (a reverse proxy's name, for example)",
        shown="localhost and the address listened on; with a token on a wider address any name",
    )
    job_timeout_s: float = setting(DEFAULT_JOB_TIMEOUT_S, "seconds that a synchronous request waits for its job")
    max_pending: int = setting(DEFAULT_MAX_PENDING, "jobs that may wait or run, over all gateways; more get a 429")
    max_body_bytes: int = setting(1024 * 1024, "largest body of a request without its images, over REST and over NATS")
    max_image_bytes: int = setting(32 * 1024 * 1024, "largest image that a request may bring")
    max_file_bytes: int = setting(96 * 1024 * 1024, "largest file, other than an image, that a request may bring")
    max_bodies_bytes: int = setting(
        512 * 1024 * 1024, "bytes of all bodies that one gateway reads and checks at once; more get a 429"
    )
    max_image_pixels: int = setting(64 * 1024 * 1024, "most pixels of an image that a request brings")
    max_pixels: int = setting(4096 * 4096, "most pixels (width x height) of one image that is drawn")
    max_steps: int = setting(1000, "most denoising steps of one request")
    max_images: int = setting(64, "most images of one request")
    max_waits: int = setting(1024, "synchronous requests and event streams open at once in one gateway")
    rate_per_minute: int | None = setting(
        None,
        "requests a minute of one client (a token, else an address); 0 is no limit",
        shown=f"no limit on loopback, else {OPEN_RATE_PER_MINUTE}",
    )
    rate_burst: int = setting(60, "requests that one client may send at once before the rate holds")
    body_timeout_s: float = setting(60.0, "seconds that the body of a request may take to arrive")
    idle_timeout_s: float = setting(75.0, "seconds that a connection may wait for the end of a request's headers")
    log_format: str = setting("human", "how processes log: human, or json (one object a line)")
    log_level: str = setting("info", "debug, info, warning or error")
    log_prompts: bool = setting(False, "let prompts stand in logs; without it they are left out")
    job_retention_s: float = setting(Retention.jobs_s, "seconds that the state of a job is kept")
    job_store_bytes: int = setting(Retention.jobs_bytes, "room for the states of jobs; the oldest go first")
    image_retention_s: float = setting(Retention.images_s, "seconds that images can be fetched by their job")
    image_store_bytes: int = setting(Retention.images_bytes, "room for those images; the oldest go first")
    webhook_secret: str | None = setting(
        None, "signs the calls to a job's callback_url; without it callback_url is refused", repr=False
    )
    webhook_allow_private: bool = setting(False, "let callback_url lead to loopback, private and link-local addresses")

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
        """Read IMAGEGEN_HOST, IMAGEGEN_PORT, …; an override that is not None wins. Raises SettingsError."""
        given = {name: value for name, value in overrides.items() if value is not None}
        values: dict[str, Any] = {}
        for item in fields(cls):
            text = env.get(variable(item.name), "").strip()
            # A token on the command line stands in for the environment's file of them, and the other way round.
            hidden = item.name in ("token", "token_file") and ("token" in given or "token_file" in given)
            if text and not hidden:
                values[item.name] = read_setting(item.name, text)
        values.update(given)
        for name, value in values.items():
            if isinstance(value, Path):
                values[name] = value.expanduser().absolute()
        return cls(**values)

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise SettingsError(f"port {self.port} is not between 1 and 65535")
        for name in ("comfyui_url", "nats_url"):
            url = getattr(self, name)
            if url is not None and "://" not in url:
                scheme = "http" if name == "comfyui_url" else "nats"
                raise SettingsError(f"{name} {url!r} has no scheme; write {scheme}://{url}")
        try:
            Names(self.nats_prefix)
        except ValueError as error:
            raise SettingsError(f"nats_prefix: {error}") from None
        if (self.nats_tls_cert is None) != (self.nats_tls_key is None):
            raise SettingsError("nats_tls_cert and nats_tls_key go together: give both, or neither")
        if self.worker_id is not None and not WORKER_ID.fullmatch(self.worker_id):
            raise SettingsError(f"worker_id {self.worker_id!r} may hold only letters, digits, - and _")
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} {getattr(self, name):g} is not above 0")
        if self.rate_per_minute is not None and self.rate_per_minute < 0:
            raise SettingsError(f"rate_per_minute {self.rate_per_minute} is below 0; 0 is no limit")
        for name, choices in (("log_format", LOG_FORMATS), ("log_level", LOG_LEVELS)):
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} {getattr(self, name)!r} is not one of {', '.join(choices)}")
        if self.token is not None and self.token_file is not None:
            raise SettingsError("token and token_file are both set; set one of them")
        if self.token is not None:
            check_token(self.token, "token")

    def environment(self, *, with_token: bool) -> dict[str, str]:
        """These settings as the environment of a child process. `with_token`: it answers requests."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        if not with_token:
            del values["token"], values["token_file"], values["webhook_secret"]
        return {variable(name): write_setting(value) for name, value in values.items() if value not in (None, ())}

    def tokens(self) -> tuple[str, ...]:
        """The tokens that requests may carry; none: requests need no token. Raises SettingsError."""
        if self.token_file is None:
            return () if self.token is None else (self.token,)
        try:
            lines = [line.strip() for line in self.token_file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"token_file {self.token_file} cannot be read: {error}") from error
        tokens = tuple(line for line in lines if line and not line.startswith("#"))
        if not tokens:
            raise SettingsError(f"token_file {self.token_file} holds no token; write one a line")
        for token in tokens:
            check_token(token, f"a token in {self.token_file}")
        return tokens

    @property
    def own_token(self) -> str | None:
        """The token that this machine's own clients send."""
        return next(iter(self.tokens()), None)

    def refuse_open_host(self) -> None:
        """Raise SettingsError for a host beyond this machine without a token: whoever reaches it could use the GPU."""
        if not is_loopback(self.host) and not self.tokens():
            raise SettingsError(
                f"host {self.host} can be reached from other machines: protect it with --token (or IMAGEGEN_TOKEN, "
                "IMAGEGEN_TOKEN_FILE), "
                "or listen on 127.0.0.1"
            )

    @property
    def url(self) -> str:
        """Where the gateway is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def names(self) -> Names:
        """What our things are called on the NATS server."""
        return Names(self.nats_prefix)

    @property
    def retention(self) -> Retention:
        """How long, and how much, the NATS server keeps."""
        return Retention(self.job_retention_s, self.job_store_bytes, self.image_retention_s, self.image_store_bytes)

    @property
    def nats_access(self) -> Access:
        """What the NATS server asks for."""
        return Access(
            user=self.nats_user,
            password=self.nats_password,
            token=self.nats_token,
            credentials=self.nats_credentials,
            tls_ca=self.nats_tls_ca,
            tls_cert=self.nats_tls_cert,
            tls_key=self.nats_tls_key,
        )

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


POSITIVE = (
    "job_timeout_s",
    "max_pending",
    "max_body_bytes",
    "max_image_bytes",
    "max_bodies_bytes",
    "max_file_bytes",
    "job_retention_s",
    "job_store_bytes",
    "image_retention_s",
    "image_store_bytes",
    "max_image_pixels",
    "max_pixels",
    "max_steps",
    "max_images",
    "max_waits",
    "rate_burst",
    "body_timeout_s",
    "idle_timeout_s",
)
"""Settings that must be above 0."""


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def flag(name: str) -> str:
    """The command-line option of a setting."""
    return "--" + name.replace("_", "-")


def shown_default(item: Field[Any]) -> str:
    """A setting's default, for people."""
    if item.metadata["shown"]:
        return item.metadata["shown"]
    if item.default is None:
        return "none"
    return write_setting(item.default)


def write_setting(value: Any) -> str:
    """A value as an environment variable holds it; `read_setting` reads it back."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def read_setting(name: str, text: str, source: str | None = None) -> Any:
    """The value that `text` says for the setting `name`; `source` is where it stands. Raises SettingsError."""
    kind = _kind(name)
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        if kind is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return kind(text)
    except (ValueError, KeyError):
        expected = {int: "a whole number", float: "a number", bool: "one of 1, 0, true, false, yes, no"}[kind]
        raise SettingsError(f"{source or variable(name)}={text!r} is not {expected}") from None


_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _kind(name: str) -> Any:
    """The type of a setting's value: bool, int, float, str, Path or tuple."""
    hint = get_type_hints(Settings)[name]
    options = [option for option in get_args(hint) if option is not NoneType]
    if getattr(hint, "__origin__", None) is tuple:
        return tuple
    return options[0] if options else hint


def check_token(token: str, name: str) -> None:
    """Raise SettingsError for a token that no Authorization header can carry."""
    if not token or token != token.strip() or not (token.isascii() and token.isprintable()):
        raise SettingsError(f"{name} must be printable ASCII characters, with no space at either end")
