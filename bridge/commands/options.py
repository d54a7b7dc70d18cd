"""The settings as command-line options: one for each, with the descriptions in `bridge.settings`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import get_args, get_origin

from bridge.settings import Settings, flag, read_setting, shown_default, variable

WHERE = ("host", "port", "state_dir")
ACCESS = ("token", "token_file", "allowed_hosts", "cors_origins", "root_path", "forwarded_prefix")
COMFYUI = ("comfyui_url", "comfyui_dir", "comfyui_output_dir")
LOGS = ("log_format", "log_level", "log_prompts")
NATS = tuple(name for name in Settings.model_fields if name.startswith("nats_"))
PATIENCE = ("idle_unload_s", "stall_s")
S3 = tuple(name for name in Settings.model_fields if name.startswith("s3_"))
GROUPS = {
    "address and files": WHERE,
    "access": ACCESS,
    "ComfyUI": COMFYUI,
    "NATS": NATS,
    "logs": LOGS,
    "S3": S3,
    "worker": ("worker_id", *PATIENCE),
}
"""Titles in `--help`. All other settings are limits."""
LIMITS = tuple(name for name in Settings.model_fields if not any(name in names for names in GROUPS.values()))
SERVICE = (*WHERE, *ACCESS, *COMFYUI, *NATS, *LIMITS, *LOGS, *S3, *PATIENCE)
GATEWAY = (*WHERE, *ACCESS, *NATS, *LIMITS, *LOGS, *S3)
STORES = ("max_pending", "job_retention_s", "job_store_bytes", "image_retention_s", "image_store_bytes")
"""The first process creates the stores, so all processes need these."""
WORKER = (
    "comfyui_url",
    "comfyui_output_dir",
    "state_dir",
    "worker_id",
    "idle_unload_s",
    "stall_s",
    *STORES,
    *NATS,
    *LOGS,
)


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add an option for each of the settings `names`."""
    wanted = set(names)
    for title, members in {**GROUPS, "limits": LIMITS}.items():
        chosen = {name: item for name, item in Settings.model_fields.items() if name in members and name in wanted}
        group = parser.add_argument_group(title) if chosen else parser
        for name, item in chosen.items():
            help_text = f"{item.description} ({shown_default(item)}; {variable(name)})".replace("%", "%%")
            if item.annotation is bool:
                group.add_argument(flag(name), action="store_const", const="1", help=help_text)
            else:
                group.add_argument(flag(name), metavar=_metavar(item.annotation), help=help_text)


def _metavar(kind: object) -> str:
    words = {int: "N", float: "SECONDS", Path: "PATH", tuple: "A,B"}
    kinds = (kind, get_origin(kind), *get_args(kind))
    return next((words[each] for each in kinds if each in words), "TEXT")


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of the environment, overridden by the command line. Raises SettingsError."""
    given = {name: getattr(args, name, None) for name in Settings.model_fields}
    return Settings.from_environment(
        **{name: read_setting(name, text, flag(name)) for name, text in given.items() if text is not None}
    )
