"""Request bodies as every API reads them."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from bridge import logs
from bridge.contract import InvalidRequest, NotJson


def parse_body(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises NotJson or InvalidRequest."""
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise NotJson(f"the body is not JSON: {error}") from error
    logs.keep_private(body)
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(body).__name__}")
    return body
