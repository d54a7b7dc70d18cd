"""Why the service cannot start or continue."""

from __future__ import annotations


class ServiceError(Exception):
    """A message for the terminal: the first line names the cause and the remedy; log lines may follow."""
