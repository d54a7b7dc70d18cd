"""The limits and the defaults of requests to a model. Pure records that check values."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidParameter


@dataclass(frozen=True)
class SizeLimit:
    """The allowed widths or heights, in pixels."""

    minimum: int = 256
    maximum: int = 2048
    multiple_of: int = 16

    def check(self, name: str, value: int) -> None:
        """Raise InvalidParameter unless ``value`` is within bounds and on the grid; names the nearest sizes."""
        if not self.minimum <= value <= self.maximum:
            nearest = self.minimum if value < self.minimum else self.maximum
            raise InvalidParameter(
                name, f"{name} {value} is outside {self.minimum} to {self.maximum} of this model; nearest is {nearest}"
            )
        if value % self.multiple_of:
            lower = value - value % self.multiple_of
            raise InvalidParameter(
                name,
                f"{name} {value} is not a multiple of {self.multiple_of}; "
                f"nearest are {lower} and {lower + self.multiple_of}",
            )


@dataclass(frozen=True)
class StepLimit:
    """The allowed sampling steps: a range, or for a step-distilled model the numbers that have a checkpoint."""

    minimum: int = 1
    maximum: int = 100
    choices: tuple[int, ...] | None = None

    def check(self, value: int) -> None:
        """Raise InvalidParameter unless the model can sample in ``value`` steps."""
        if self.choices is not None and value not in self.choices:
            choices = ", ".join(map(str, self.choices))
            raise InvalidParameter(
                "num_inference_steps", f"num_inference_steps {value} is not available; this model has {choices}"
            )
        if not self.minimum <= value <= self.maximum:
            raise InvalidParameter(
                "num_inference_steps",
                f"num_inference_steps {value} is outside {self.minimum} to {self.maximum} of this model",
            )


@dataclass(frozen=True)
class GuidanceLimit:
    """The allowed guidance scales."""

    minimum: float = 0.0
    maximum: float = 20.0

    def check(self, value: float) -> None:
        """Raise InvalidParameter unless ``value`` is within bounds."""
        if not self.minimum <= value <= self.maximum:
            raise InvalidParameter(
                "guidance_scale",
                f"guidance_scale {value:g} is outside {self.minimum:g} to {self.maximum:g} of this model",
            )


@dataclass(frozen=True)
class CountLimit:
    """The allowed number of images in one request."""

    minimum: int = 1
    maximum: int = 8

    def check(self, value: int) -> None:
        """Raise InvalidParameter unless ``value`` is within bounds."""
        if not self.minimum <= value <= self.maximum:
            raise InvalidParameter("num_images", f"num_images {value} is outside {self.minimum} to {self.maximum}")


@dataclass(frozen=True)
class Limits:
    """The allowed values of a request to this model."""

    width: SizeLimit = SizeLimit()
    height: SizeLimit = SizeLimit()
    num_inference_steps: StepLimit = StepLimit()
    guidance_scale: GuidanceLimit = GuidanceLimit()
    num_images: CountLimit = CountLimit()
    negative_prompt: bool = False


@dataclass(frozen=True)
class Defaults:
    """The values for whatever a request leaves out."""

    width: int = 1024
    height: int = 1024
    num_inference_steps: int = 28
    guidance_scale: float = 3.5
