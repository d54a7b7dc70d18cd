"""The token of a ComfyUI that wants one: its middleware, in the node pack, reads the same file.

Without it, every local user may use a ComfyUI that listens on loopback.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bridge.comfyui.errors import ComfyUIError

TOKEN_VARIABLE = "NEUROLUX_COMFYUI_TOKEN_FILE"


def token_headers(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The headers that carry the token; none where no file is named. Raises ComfyUIError if it cannot be read."""
    path = env.get(TOKEN_VARIABLE, "").strip()
    if not path:
        return {}
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ComfyUIError(f"ComfyUI's token file {path} ({TOKEN_VARIABLE}) cannot be read: {error}") from error
    if not token or not token.isprintable() or " " in token:
        raise ComfyUIError(f"ComfyUI's token file {path} ({TOKEN_VARIABLE}) holds no token: one line without spaces")
    return {"Authorization": f"Bearer {token}"}
