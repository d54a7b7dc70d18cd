"""A request as an API hands it to the gateway, and what one request may bring."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.contract import InvalidRequest
from bridge.gateway.limits import RequestLimits
from bridge.modes.images_in import ImageLimits


class FormText(str):
    """A text of a form, not yet converted to the type of its field."""

    __slots__ = ()


@dataclass(frozen=True)
class Body:
    """The fields of a request. `files` came as bytes; `text_bytes` is the size of everything else."""

    values: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    text_bytes: int = 0
    is_form: bool = False
    """It came as a form: values that are `FormText` are not yet converted."""

    @property
    def cancel_on_disconnect(self) -> bool:
        """Whether to cancel the job when its caller hangs up. The field is validated with the others."""
        value = self.values.get("cancel_on_disconnect")
        return value is True or (isinstance(value, FormText) and value.lower() in ("true", "1"))

    def refuse_cancel_on_disconnect(self) -> None:
        """Raise InvalidRequest if the caller wants a cancellation that this endpoint cannot offer."""
        if self.cancel_on_disconnect:
            message = "cancel_on_disconnect needs a connection that waits: leave it out, or use POST /v1/generate-image"
            raise InvalidRequest(message, field="cancel_on_disconnect")

    def fingerprint(self, endpoint: str) -> str:
        """The SHA-256 of the request and its endpoint. White space and the order of fields do not matter."""
        digest = hashlib.sha256(endpoint.encode())
        try:
            digest.update(json.dumps(self.values, sort_keys=True, separators=(",", ":")).encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest("a text of the request holds half of a surrogate pair") from error
        for name, data in sorted(self.files.items()):
            digest.update(b"\n" + name.encode() + b"\n" + hashlib.sha256(data).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Limits:
    """What one request may bring. `body_bytes` counts everything but its images and files."""

    body_bytes: int = 1024 * 1024
    file_bytes: int = 96 * 1024 * 1024
    image: ImageLimits = ImageLimits(max_bytes=32 * 1024 * 1024, max_pixels=64 * 1024 * 1024)
    request: RequestLimits = RequestLimits()
