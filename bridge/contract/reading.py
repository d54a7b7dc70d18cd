"""How a program reads what the service sends: fields that it does not know are left out.

The service builds its answers strictly (`bridge.contract`), so that a mistake of ours is found; a program that is older
than the service it talks to must not fail over a field that it has never heard of.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

Answer = TypeVar("Answer", bound=BaseModel)


def read_answer(model: type[Answer], data: str | bytes) -> Answer:
    """``data`` as ``model``, nested models too. Raises pydantic.ValidationError where what is known does not fit."""
    return model.model_validate_json(data, extra="ignore")
