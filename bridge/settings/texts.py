"""Settings as text: names of variables and options, values in both directions, and what is wrong with a value."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

ENV_PREFIX = "IMAGEGEN_"


class SettingsError(ValueError):
    """A setting has a value that cannot be used. The message names the setting, its value and the remedy."""


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def flag(name: str) -> str:
    """The command-line option of a setting."""
    return "--" + name.replace("_", "-")


def shown_default(item: FieldInfo) -> str:
    """A setting's default, as people read it."""
    extra = item.json_schema_extra
    if isinstance(extra, dict) and extra["shown"]:
        return str(extra["shown"])
    return "none" if item.default is None else write_setting(item.default)


def write_setting(value: Any) -> str:
    """A value as an environment variable holds it; `read_setting` reads it back."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


EXPECTED = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "one of 1, 0, true, false, yes, no",
}
"""What a text should have been, by the type of pydantic's error."""


def explain(error: ErrorDetails, source: Callable[[str], str]) -> str:
    """One sentence about a value that cannot be used. `source` gives the place where a setting was read."""
    name, value, context = ".".join(map(str, error["loc"][:1])), error["input"], error.get("ctx", {})
    match error["type"]:
        case kind if kind in EXPECTED:
            return f"{source(name)}={value!r} is not {EXPECTED[kind]}"
        case "greater_than":
            return f"{name} {value} is not above {context['gt']:g}"
        case "greater_than_equal":
            return f"{name} {value} is below {context['ge']:g}; 0 is no limit"
        case "less_than_equal":
            return f"{name} {value} is above {context['le']:g}"
        case "literal_error":
            choices = context["expected"].replace(" or ", ", ").replace("'", "")
            return f"{name} {value!r} is not one of {choices}"
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return f"there is no setting {name!r}"
        case _:
            return f"{name} {value!r}: {error['msg']}"


def check_token(token: str, name: str) -> None:
    """Raise SettingsError for a token that no Authorization header can carry."""
    if not token or token != token.strip() or not (token.isascii() and token.isprintable()):
        raise SettingsError(f"{name} must be printable ASCII characters, with no space at either end")


def is_loopback(host: str) -> bool:
    """True for localhost and loopback addresses; a name that is not an address counts as public."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
