"""What environment variables say of how images are made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, TypeVar, get_args

from ..errors import InvalidParameter

Noise = Literal["diffusers", "fp32"]
"""The type that noise is drawn in: the one that is computed in, as diffusers does, or always fp32."""
Padding = Literal["trained", "diffusers"]
"""What a model sees of a prompt's padding: what it was trained with, or what the installed diffusers lets it see."""
Choice = TypeVar("Choice", bound=str)


def chosen_noise(env: Mapping[str, str] = os.environ) -> Noise:
    """What ``NEUROLUX_NOISE`` says. Raises InvalidParameter for another word."""
    return chosen("noise", get_args(Noise), env)


def chosen_padding(env: Mapping[str, str] = os.environ) -> Padding:
    """What ``NEUROLUX_PADDING`` says. Raises InvalidParameter for another word."""
    return chosen("padding", get_args(Padding), env)


def chosen(field: str, choices: tuple[Choice, ...], env: Mapping[str, str]) -> Choice:
    """One of ``choices``, the first unless the variable of ``field`` names another. Raises InvalidParameter."""
    variable = f"NEUROLUX_{field.upper()}"
    value = env.get(variable) or choices[0]
    for choice in choices:
        if value == choice:
            return choice
    raise InvalidParameter(field, f"{variable} is {value!r}; use {' or '.join(choices)}, and restart ComfyUI")
