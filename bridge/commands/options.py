"""The settings as command-line options: one for each, with the words of `bridge/settings.py`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import fields

from bridge.settings import Settings, flag, read_setting, shown_default, variable

WHERE = ("host", "port", "state_dir")
DOORS = ("token", "token_file", "allowed_hosts")
COMFYUI = ("comfyui_url", "comfyui_dir", "comfyui_output_dir")
LOGS = ("log_format", "log_level", "log_prompts")
NATS = tuple(item.name for item in fields(Settings) if item.name.startswith("nats_"))
GROUPS = {
    "where": WHERE,
    "who may use it": DOORS,
    "ComfyUI": COMFYUI,
    "NATS": NATS,
    "logs": LOGS,
    "worker": ("worker_id",),
}
"""Titles in `--help`. What is in none of them is a limit."""
LIMITS = tuple(item.name for item in fields(Settings) if not any(item.name in names for names in GROUPS.values()))
SERVICE = (*WHERE, *DOORS, *COMFYUI, *NATS, *LIMITS, *LOGS)
GATEWAY = (*WHERE, *DOORS, *NATS, *LIMITS, *LOGS)
STORES = ("max_pending", "job_retention_s", "job_store_bytes", "image_retention_s", "image_store_bytes")
"""Whoever comes first makes the stores, so all processes are told the same."""
WORKER = ("comfyui_url", "comfyui_output_dir", "state_dir", "worker_id", *STORES, *NATS, *LOGS)


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add an option for each of the settings `names`."""
    wanted = set(names)
    for title, members in {**GROUPS, "limits": LIMITS}.items():
        chosen = [item for item in fields(Settings) if item.name in members and item.name in wanted]
        group = parser.add_argument_group(title) if chosen else parser
        for item in chosen:
            help_text = f"{item.metadata['meaning']} ({shown_default(item)}; {variable(item.name)})".replace("%", "%%")
            if item.type == "bool":
                group.add_argument(flag(item.name), action="store_const", const="1", help=help_text)
            else:
                group.add_argument(flag(item.name), metavar=_metavar(item.type), help=help_text)


def _metavar(kind: object) -> str:
    words = {"int": "N", "float": "SECONDS", "Path": "PATH", "tuple": "A,B"}
    return next((word for name, word in words.items() if str(kind).startswith(name)), "TEXT")


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of the environment, with what the command line says instead. Raises SettingsError."""
    given = {item.name: getattr(args, item.name, None) for item in fields(Settings)}
    return Settings.from_environment(
        **{name: read_setting(name, text, flag(name)) for name, text in given.items() if text is not None}
    )
