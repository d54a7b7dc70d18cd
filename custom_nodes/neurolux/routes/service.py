"""What the service that started this ComfyUI says of itself."""

from __future__ import annotations

import os

SERVICE_VARIABLE = "NEUROLUX_SERVICE_URL"
"""Set by the service for the ComfyUI that it starts, and starts again when it ends."""


def service_url() -> str:
    """The address of the service, without a slash at its end; empty where a person started ComfyUI."""
    return os.environ.get(SERVICE_VARIABLE, "").rstrip("/")
