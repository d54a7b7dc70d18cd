"""How one instance of the service is set up: where it listens, what it uses, and where it keeps its files."""

from __future__ import annotations

from bridge.settings.model import (
    APP_NAME,
    DEFAULT_HOST,
    DEFAULT_JOB_TIMEOUT_S,
    DEFAULT_MAX_PENDING,
    DEFAULT_PORT,
    OPEN_RATE_PER_MINUTE,
    PATH_PREFIX,
    Settings,
    default_state_dir,
    read_setting,
    without_secrets,
)
from bridge.settings.records import Access, Retention
from bridge.settings.texts import ENV_PREFIX, SettingsError, flag, is_loopback, shown_default, variable, write_setting

__all__ = [
    "APP_NAME",
    "Access",
    "DEFAULT_HOST",
    "DEFAULT_JOB_TIMEOUT_S",
    "DEFAULT_MAX_PENDING",
    "DEFAULT_PORT",
    "ENV_PREFIX",
    "OPEN_RATE_PER_MINUTE",
    "PATH_PREFIX",
    "Retention",
    "Settings",
    "SettingsError",
    "default_state_dir",
    "flag",
    "is_loopback",
    "read_setting",
    "shown_default",
    "variable",
    "without_secrets",
    "write_setting",
]
