"""What all wire models build on: their two bases, job ids, and how a program reads an answer."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

JOB_ID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
"""A lowercase UUID. It is also ComfyUI's prompt id, and newer releases of ComfyUI refuse any other form."""

JobId = Annotated[str, Field(pattern=JOB_ID_PATTERN)]
Answer = TypeVar("Answer", bound=BaseModel)


class WireModel(BaseModel):
    """Base of what the service sends. The service builds these models itself, so an unknown field is a bug.

    Events leave nulls out, so every field of an event that may be null has null as its default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class PackModel(BaseModel):
    """Base of what the node pack sends. A newer pack may send more fields; they are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


def read_answer(model: type[Answer], data: str | bytes) -> Answer:
    """Parse ``data`` as ``model``, ignoring unknown fields at every level.

    Programs read with this, so that an older program works with a newer service. Raises pydantic.ValidationError if a
    known field does not fit.
    """
    return model.model_validate_json(data, extra="ignore")
