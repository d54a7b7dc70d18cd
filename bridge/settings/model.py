"""How one instance of the service is set up: where it listens, what it uses, and where it keeps its files.

Every field has an environment variable of the same name with the prefix IMAGEGEN_; an option of the command line wins
over it. The description of a field is what `--help` and docs/CONFIGURATION.md show.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from bridge.disk import Disks
from bridge.names import DEFAULT_PREFIX, Names
from bridge.settings.records import Access, Retention
from bridge.settings.texts import ENV_PREFIX, SettingsError, check_token, explain, is_loopback, variable, write_setting

APP_NAME = "neurolux-imagegen"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8005
DEFAULT_JOB_TIMEOUT_S = 600.0
DEFAULT_MAX_PENDING = 64
OPEN_RATE_PER_MINUTE = 600
"""Requests a minute from one client where other machines can reach the service."""
AWS_SECRETS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}
OTEL_SECRET = re.compile(r"OTEL_EXPORTER_OTLP_(\w+_)?HEADERS")
_SECRET = re.compile(rf"{ENV_PREFIX}\w*(TOKEN|SECRET|PASSWORD|CREDENTIALS|KEY)\w*", re.IGNORECASE)
"""Also of versions that this one does not know."""
ORIGIN = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", re.IGNORECASE)
PATH_PREFIX = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]{1,100}){1,10}")
"""A path that may stand in front of every path of the service."""
MAX_S3_URL_LIFETIME_S = 7 * 24 * 3600.0
"""What S3 allows."""
WORKER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

LocalPath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
CommaList = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(lambda value: [part.strip() for part in value.split(",")] if isinstance(value, str) else value),
    AfterValidator(lambda parts: tuple(part for part in parts if part)),
]


def default_state_dir() -> Path:
    """`$XDG_STATE_HOME/neurolux-imagegen`, on Linux usually `~/.local/state/neurolux-imagegen`."""
    return Path(platformdirs.user_state_dir(APP_NAME, appauthor=False))


def setting(default: Any = ..., description: str = "", *, shown: str | None = None, **options: Any) -> Any:
    """A field of Settings. `shown` is what people read in place of the default."""
    if "default_factory" not in options:
        options["default"] = default
    return Field(description=description, json_schema_extra={"shown": shown}, **options)


class Settings(BaseSettings):
    """All settings of one instance. Instances with different `state_dir` and `port` run side by side.

    The constructor takes values and reads nothing; `from_environment` reads the variables.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    host: str = setting(DEFAULT_HOST, "address to listen on; one beyond this machine needs a token")
    port: int = setting(DEFAULT_PORT, "port to listen on")
    state_dir: LocalPath = setting(
        description="folder of this instance's files (see 'imagegen paths')",
        default_factory=default_state_dir,
        shown="the XDG state folder",
    )
    comfyui_url: str | None = setting(None, "use a running ComfyUI, such as http://127.0.0.1:8188", shown="start one")
    comfyui_dir: LocalPath | None = setting(
        None, "start this ComfyUI (the folder with main.py)", shown="a comfy-cli workspace, else the pinned copy"
    )
    comfyui_output_dir: LocalPath | None = setting(
        None,
        "ComfyUI's output folder on this machine: results are read from it, not over HTTP",
        shown="the one of the ComfyUI that 'imagegen up' starts, else none",
    )
    nats_url: str | None = setting(None, "use a running NATS server, such as nats://127.0.0.1:4222", shown="start one")
    nats_prefix: str = setting(
        DEFAULT_PREFIX, "prefix of all NATS subjects; services with different prefixes can share a cluster"
    )
    nats_user: str | None = setting(None, "user name for the NATS server")
    nats_password: str | None = setting(None, "password for the NATS server", repr=False)
    nats_token: str | None = setting(None, "token for the NATS server", repr=False)
    nats_credentials: LocalPath | None = setting(None, "credentials file (.creds) for the NATS server")
    nats_tls_ca: LocalPath | None = setting(
        None, "certificate authority of the NATS server (PEM)", shown="the system's"
    )
    nats_tls_cert: LocalPath | None = setting(
        None, "client certificate for the NATS server (PEM), together with nats_tls_key"
    )
    nats_tls_key: LocalPath | None = setting(None, "private key of nats_tls_cert (PEM)")
    worker_id: str | None = setting(None, "name of this worker, unique among all workers", shown="from host and port")
    idle_unload_s: NonNegativeFloat = setting(
        0.0, "seconds without a job after which a worker frees the memory of its device; 0 is never"
    )
    stall_s: NonNegativeFloat = setting(
        1800.0,
        "seconds without any progress after which a job fails, and a ComfyUI that does not stop it is started again; "
        "0 is never",
    )
    token: str | None = setting(
        None,
        "token that every request must carry; other users of this machine can read it on the command line",
        repr=False,
    )
    token_file: LocalPath | None = setting(
        None, "file with one valid token a line; lines that start with # are comments"
    )
    allowed_hosts: CommaList = setting(
        (),
        "host names that clients may use, separated by commas (that of a reverse proxy, for example)",
        shown="localhost and the address of --host; any name on a wider address, which needs a token",
    )
    cors_origins: CommaList = setting(
        (),
        "web pages that may use the service: origins such as http://localhost:3000, separated by commas",
        shown="none",
    )
    root_path: str = setting(
        "",
        "path under which a proxy serves the service, such as /images; links and redirects then start with it",
        shown="none",
    )
    forwarded_prefix: bool = setting(
        False, "take that path from the header X-Forwarded-Prefix, which the proxy must set or remove in every request"
    )
    job_timeout_s: PositiveFloat = setting(DEFAULT_JOB_TIMEOUT_S, "seconds a synchronous request waits for its job")
    max_pending: PositiveInt = setting(
        DEFAULT_MAX_PENDING, "most jobs that wait or run, over all gateways; more get a 429"
    )
    max_body_bytes: PositiveInt = setting(
        1024 * 1024, "largest request body in bytes, not counting images and files, over REST and NATS"
    )
    max_image_bytes: PositiveInt = setting(32 * 1024 * 1024, "largest image in a request, in bytes")
    max_file_bytes: PositiveInt = setting(96 * 1024 * 1024, "largest other file in a request, in bytes")
    max_bodies_bytes: PositiveInt = setting(
        512 * 1024 * 1024, "most bytes of request bodies that one gateway holds at once; more get a 429"
    )
    max_image_pixels: PositiveInt = setting(64 * 1024 * 1024, "most pixels of an image in a request")
    max_decoded_pixels: PositiveInt = setting(
        64 * 1024 * 1024, "most pixels of images in requests that one gateway decodes at once; more of them wait"
    )
    max_pixels: PositiveInt = setting(4096 * 4096, "most pixels (width x height) of a generated image")
    max_steps: PositiveInt = setting(1000, "most denoising steps of one request")
    max_images: PositiveInt = setting(64, "most images of one request")
    max_waits: PositiveInt = setting(1024, "most synchronous requests and event streams open at once in one gateway")
    rate_per_minute: NonNegativeInt | None = setting(
        None,
        "requests a minute for one client (a token, else an address); 0 is no limit",
        shown=f"no limit on loopback, else {OPEN_RATE_PER_MINUTE}",
    )
    rate_burst: PositiveInt = setting(60, "requests that one client may send at once before the rate applies")
    body_timeout_s: PositiveFloat = setting(60.0, "seconds the body of a request may take to arrive")
    idle_timeout_s: PositiveFloat = setting(75.0, "seconds a connection may take to send the headers of a request")
    log_format: Literal["human", "json"] = setting("human", "log format: human, or json (one object a line)")
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "log level: debug, info, warning or error"
    )
    log_prompts: bool = setting(False, "write prompts to logs; by default they are left out")
    job_retention_s: PositiveFloat = setting(Retention.jobs_s, "seconds to keep the state of a job")
    job_store_bytes: PositiveInt = setting(
        Retention.jobs_bytes, "most bytes of job states; the oldest are removed first"
    )
    image_retention_s: PositiveFloat = setting(Retention.images_s, "seconds to keep the images of a job")
    image_store_bytes: PositiveInt = setting(
        Retention.images_bytes,
        "most bytes of images, and again of uploads; the oldest images are removed first, and a store that is full of "
        "the uploads of waiting jobs refuses more",
    )
    min_free_disk_bytes: NonNegativeInt = setting(
        256 * 1024 * 1024,
        "free bytes below which, on a disk of disk_folders, new jobs are refused with a 503 and a worker takes none; "
        "0 is no limit",
    )
    disk_folders: CommaList = setting(
        (),
        "folders on the disks that jobs fill, separated by commas, as this gateway or worker sees them",
        shown="those of the NATS server and the ComfyUI that 'imagegen up' starts, else none",
    )
    webhook_secret: str | None = setting(
        None, "secret that signs webhooks (callback_url); without it callback_url is refused", repr=False
    )
    webhook_allow_private: bool = setting(
        False, "allow callback_url to reach loopback, private and link-local addresses"
    )
    image_urls: CommaList = setting(
        (),
        "hosts from which requests may name images by URL, separated by commas: a name, *.name for all below it, or * "
        "for any",
        shown="none: requests bring their images",
    )
    image_urls_allow_private: bool = setting(
        False, "allow image URLs to reach loopback, private and link-local addresses"
    )

    s3_bucket: str | None = setting(
        None, "S3 bucket to which results are copied, with presigned URLs in the answers; needs the extra s3"
    )
    s3_endpoint: str | None = setting(
        None, "URL of an S3-compatible server, such as http://127.0.0.1:9000", shown="that of AWS"
    )
    s3_region: str | None = setting(None, "region of the bucket", shown="AWS_REGION, else us-east-1")
    s3_prefix: str = setting("", "what the keys of the copies begin with", shown="nothing")
    s3_url_lifetime_s: PositiveFloat = setting(
        3600.0, "seconds for which a presigned URL is valid, at most a week", le=MAX_S3_URL_LIFETIME_S
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(explain(error.errors()[0], variable)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but the arguments of the constructor."""
        return (init_settings,)

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read IMAGEGEN_HOST, IMAGEGEN_PORT, … from `env` (this process's environment); an override wins unless None.

        Raises SettingsError.
        """
        source = EnvSettingsSource(cls)
        env = os.environ if env is None else env
        source.env_vars = {name.lower(): text.strip() for name, text in env.items() if text.strip()}
        given = {name: value for name, value in overrides.items() if value is not None}
        values = source()
        if "token" in given or "token_file" in given:
            # A token on the command line replaces the token file of the environment, and vice versa.
            values = {name: value for name, value in values.items() if name not in ("token", "token_file")}
        return cls(**{**values, **given})

    @field_validator("port")
    @classmethod
    def _check_port(cls, port: int) -> int:
        if not 0 < port < 65536:
            raise ValueError(f"port {port} is not between 1 and 65535")
        return port

    @field_validator("comfyui_url", "nats_url", "s3_endpoint")
    @classmethod
    def _check_url(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is not None and "://" not in url:
            scheme = "nats" if info.field_name == "nats_url" else "http"
            raise ValueError(f"{info.field_name} {url!r} has no scheme; write {scheme}://{url}")
        return url

    @field_validator("nats_prefix")
    @classmethod
    def _check_prefix(cls, prefix: str) -> str:
        try:
            return Names(prefix).prefix
        except ValueError as error:
            raise ValueError(f"nats_prefix: {error}") from None

    @field_validator("worker_id")
    @classmethod
    def _check_worker_id(cls, worker_id: str | None) -> str | None:
        if worker_id is not None and not WORKER_ID.fullmatch(worker_id):
            raise ValueError(f"worker_id {worker_id!r} may hold only letters, digits, - and _, at most 64 of them")
        return worker_id

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"cors_origins: {origin!r} is not an origin; write it like https://app.example.org, with its port "
                    "and without a path, and list each one: there is no wildcard"
                )
        return origins

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not PATH_PREFIX.fullmatch(path):
            raise ValueError(f"root_path {path!r} is not a path such as /images")
        return path

    @field_validator("token")
    @classmethod
    def _check_token(cls, token: str | None) -> str | None:
        if token is not None:
            check_token(token, "token")
        return token

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if (self.nats_tls_cert is None) != (self.nats_tls_key is None):
            raise ValueError("nats_tls_cert and nats_tls_key go together: set both, or neither")
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file are both set; set one of them")
        return self

    def environment(self, *, with_token: bool) -> dict[str, str]:
        """These settings as the environment of a child process. `with_token`: for a child that answers requests."""
        values = dict(self)
        if not with_token:
            del values["token"], values["token_file"], values["webhook_secret"]
        return {variable(name): write_setting(value) for name, value in values.items() if value not in (None, ())}

    def tokens(self) -> tuple[str, ...]:
        """The valid tokens; empty if requests need none. Raises SettingsError."""
        if self.token_file is None:
            return () if self.token is None else (self.token,)
        try:
            lines = [line.strip() for line in self.token_file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"token_file {self.token_file} cannot be read: {error}") from error
        tokens = tuple(line for line in lines if line and not line.startswith("#"))
        if not tokens:
            raise SettingsError(f"token_file {self.token_file} holds no token; write one on each line")
        for token in tokens:
            check_token(token, f"a token in {self.token_file}")
        return tokens

    def secrets(self) -> list[str]:
        """The values of all secret settings."""
        named = (getattr(self, name) for name, item in type(self).model_fields.items() if not item.repr)
        return [value for value in named if isinstance(value, str)]

    @property
    def own_token(self) -> str | None:
        """The token that the clients on this machine send."""
        return next(iter(self.tokens()), None)

    def refuse_open_host(self) -> None:
        """Raise SettingsError if other machines can reach the service and no token protects it."""
        if not is_loopback(self.host) and not self.tokens():
            raise SettingsError(
                f"host {self.host} can be reached from other machines: protect it with --token (or IMAGEGEN_TOKEN, "
                "IMAGEGEN_TOKEN_FILE), or listen on 127.0.0.1"
            )

    @property
    def url(self) -> str:
        """The URL of the gateway on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def names(self) -> Names:
        """The names that the service uses on the NATS server."""
        return Names(self.nats_prefix)

    @property
    def retention(self) -> Retention:
        """How long, and how much, the NATS server stores."""
        return Retention(self.job_retention_s, self.job_store_bytes, self.image_retention_s, self.image_store_bytes)

    @property
    def nats_access(self) -> Access:
        """How to log in to the NATS server."""
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
    def disks(self) -> Disks:
        """The disks that must keep space free for new jobs."""
        return Disks(tuple(Path(folder) for folder in self.disk_folders), self.min_free_disk_bytes)

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
    def nats_token_file(self) -> Path:
        """The token of the service's own NATS server, for this user's programs; exists only if the service has one."""
        return self.state_dir / "nats.token"

    @property
    def comfyui_token_file(self) -> Path:
        """The same for the service's own ComfyUI."""
        return self.state_dir / "comfyui.token"

    @property
    def logs(self) -> Path:
        return self.state_dir / "logs"

    @property
    def runtime_file(self) -> Path:
        """Describes the running service; exists only while it runs."""
        return self.state_dir / "runtime.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the service that runs on this state directory."""
        return self.state_dir / "service.lock"

    def make_directories(self) -> None:
        """Create every folder of the state directory, ComfyUI's included, readable by this user only."""
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


def without_secrets(env: Mapping[str, str]) -> dict[str, str]:
    """An environment for programs of others: without the variables that hold or locate a secret of this service.

    The standard variables of S3 and OpenTelemetry are its secrets only where it uses them.
    """
    secret = {variable(name) for name, item in Settings.model_fields.items() if not item.repr}
    if env.get(variable("s3_bucket")):
        secret |= AWS_SECRETS
    return {
        name: value
        for name, value in env.items()
        if name.upper() not in secret and not _SECRET.fullmatch(name) and not OTEL_SECRET.fullmatch(name)
    }


def read_setting(name: str, text: str, source: str | None = None) -> Any:
    """The value of the setting `name` that `text` stands for. Raises SettingsError, which names the `source`."""
    item = Settings.model_fields[name]
    alone: type[BaseModel] = create_model("Alone", **{name: (item.annotation, item)})  # pyright: ignore
    try:
        return getattr(alone(**{name: text}), name)
    except ValidationError as error:
        raise SettingsError(explain(error.errors()[0], lambda _: source or variable(name))) from None
