"""The most that one request may ask for, in any API and for any model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bridge.contract import ErrorDetail
from bridge.modes.model_limits import Most
from bridge.settings import Settings


@dataclass(frozen=True)
class RequestLimits:
    """Inclusive bounds; the settings of the same names set them."""

    max_pixels: int = 4096 * 4096
    max_steps: int = 1000
    max_images: int = 64
    callbacks: bool = True
    """Whether webhooks are sent."""

    @classmethod
    def of(cls, settings: Settings) -> RequestLimits:
        """The limits of the settings."""
        sends = settings.webhook_secret is not None
        return cls(settings.max_pixels, settings.max_steps, settings.max_images, sends)

    @property
    def most(self) -> Most:
        """The same for the schemas of modes."""
        return Most(self.max_pixels, self.max_steps, self.max_images, self.callbacks)

    def problems(self, parameters: Mapping[str, Any]) -> list[ErrorDetail]:
        """Every limit that the parameters of a job exceed."""
        width, height = parameters.get("width"), parameters.get("height")
        details: list[ErrorDetail] = []
        if isinstance(width, int) and isinstance(height, int) and width * height > self.max_pixels:
            message = f"{width} x {height} is {width * height} pixels; the limit (max_pixels) is {self.max_pixels}"
            details.append(ErrorDetail(field="width", message=message))
        for field, name, limit in (
            ("num_inference_steps", "max_steps", self.max_steps),
            ("num_images", "max_images", self.max_images),
        ):
            value = parameters.get(field)
            if isinstance(value, int) and value > limit:
                details.append(
                    ErrorDetail(field=field, message=f"{field} {value} is over the limit ({name}) of {limit}")
                )
        return details
