"""Why the service cannot start or go on."""

from __future__ import annotations


class ServiceError(Exception):
    """The message is for the terminal: its first line names the cause and the remedy; log lines may follow."""
