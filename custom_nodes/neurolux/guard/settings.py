"""How the guard is set: the pack's environment variables, and ComfyUI's own options that say who is welcome."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .addresses import Address, read_allowed, read_host

GUARD_VARIABLE = "NEUROLUX_GUARD"
HOSTS_VARIABLE = "NEUROLUX_ALLOWED_HOSTS"
TOKEN_VARIABLE = "NEUROLUX_COMFYUI_TOKEN_FILE"
ON, OPEN, OFF = MODES = ("on", "open", "off")
ANY = "*"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GuardSettings:
    """What the guard does.

    `check_callers`: whether requests of foreign web pages are refused. `any_host`: ComfyUI was opened to a network, so
    it may have any name there. `any_origin`: its CORS is open to every page. `token`: what callers must present.
    """

    enabled: bool = True
    check_callers: bool = True
    any_host: bool = False
    any_origin: bool = False
    allowed: tuple[Address, ...] = ()
    token: str | None = None


def guard_settings(env: Mapping[str, str] = os.environ, arguments: Any = None) -> GuardSettings:
    """Read the settings. `arguments`: ComfyUI's parsed command line (`comfy.cli_args.args`)."""
    mode = env.get(GUARD_VARIABLE, "").strip().lower() or ON
    if mode not in MODES:
        _log.warning("NeuroLux: %s=%r is none of %s; taken as %r", GUARD_VARIABLE, mode, ", ".join(MODES), ON)
        mode = ON
    listed = [entry.strip() for entry in env.get(HOSTS_VARIABLE, "").split(",") if entry.strip()]
    cors = getattr(arguments, "enable_cors_header", None)
    allowed = [_allowed(entry) for entry in [*listed, *([cors] if cors else [])] if entry != ANY]
    opened = not _only_loopback(str(getattr(arguments, "listen", None) or "127.0.0.1"))
    return GuardSettings(
        enabled=mode != OFF,
        check_callers=mode == ON,
        # Who lists names wants others refused, on a network too.
        any_host=ANY in listed or (opened and not listed),
        any_origin=cors == ANY,
        allowed=tuple(address for address in allowed if address is not None),
        token=_token(env),
    )


def _allowed(entry: str) -> Address | None:
    address = read_allowed(entry)
    if address is None:
        _log.warning(
            "NeuroLux: %r in %s is no host name, such as gpu.example or gpu.example:8188", entry, HOSTS_VARIABLE
        )
    return address


def _only_loopback(listen: str) -> bool:
    """Whether ComfyUI's `--listen`, addresses separated by commas, reaches no network."""
    addresses = [text.strip() for text in listen.split(",") if text.strip()]
    hosts = [read_host(f"[{text}]" if ":" in text else text) for text in addresses]
    return all(host is not None and host.loopback for host in hosts)


def _token(env: Mapping[str, str]) -> str | None:
    """The token that callers must present. If its file cannot be read, one that nobody knows: nothing stays open."""
    path = env.get(TOKEN_VARIABLE, "").strip()
    if not path:
        return None
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(4096).strip()
            loose = os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077
        problem = "" if token else "it is empty"
        if loose:
            _log.warning("NeuroLux: other users can read the token file %s; chmod 600 it", path)
    except (OSError, ValueError) as error:
        token, problem = "", str(error)
    if problem:
        _log.error("NeuroLux: ComfyUI's token file %s (%s) cannot be used: %s", path, TOKEN_VARIABLE, problem)
    return token or secrets.token_hex()
