"""The JSON Schema of requests to a mode: the graph's parameters, within the limits of every request."""

from __future__ import annotations

from typing import Any

from bridge.contract import ImageGenRequest, media_type_of
from bridge.modes.library import Mode
from bridge.modes.parameters import UPLOADS, Parameter, ParameterKind

SHARED_FIELDS = ("job_id", "callback_url", "cancel_on_disconnect", "priority")
"""Fields of every request that are not parameters of a graph. The path names the mode."""
IMAGE_TEXT = (
    "base64, a data URL, an https URL where the service allows them, or job:<id>/<n>, an image of an earlier job; in a "
    "form: the file itself"
)
FILE_TEXT = "base64, a data URL, or job:<id>/<n>, a file of an earlier job; in a form: the file itself"


def request_schema(mode: Mode) -> dict[str, Any]:
    """The body of `POST /v1/modes/{name}`. Null means the default of the model or the graph, as if left out."""
    fields = ImageGenRequest.model_json_schema()["properties"]
    properties = {name: _property(parameter, fields.get(name)) for name, parameter in mode.parameters.items()}
    for name in mode.left_open:
        properties[name].pop("default", None)
    properties |= {name: fields[name] for name in SHARED_FIELDS}
    return {
        "title": mode.title,
        "description": mode.description,
        "type": "object",
        "properties": properties,
        "required": [name for name, parameter in mode.parameters.items() if parameter.required],
        "additionalProperties": False,
    }


def form_schema(mode: Mode) -> dict[str, Any]:
    """The same as a form: every field is a text, every image or other file a file."""
    schema = request_schema(mode)
    for name, parameter in mode.parameters.items():
        if parameter.kind in UPLOADS:
            text = {"type": "string", "contentMediaType": _media(parameter), "description": parameter.description}
            schema["properties"][name] = text
    return schema


def _media(parameter: Parameter) -> str:
    if parameter.kind is ParameterKind.IMAGE:
        return "image/*"
    return media_type_of(f".{parameter.accept[0]}") if len(parameter.accept) == 1 else "application/octet-stream"


def _property(parameter: Parameter, shared: dict[str, Any] | None) -> dict[str, Any]:
    schema: dict[str, Any] = dict(parameter.json_schema())
    if parameter.kind in UPLOADS:
        # The saved default is a file on the machine of the graph's author, which a caller cannot send.
        ways = IMAGE_TEXT if parameter.kind is ParameterKind.IMAGE else FILE_TEXT
        kinds = f"{', '.join(parameter.accept)}: " if parameter.accept else ""
        description = f"{parameter.description} ({kinds}{ways})".strip()
        schema = {"type": "string", "format": parameter.kind.value, "description": description, "minLength": 1}
    schema["description"] = schema.get("description") or (shared or {}).get("description", "")
    if shared is not None:
        _narrow(schema, shared)
    if not _fits(schema.get("default"), schema):
        schema.pop("default", None)  # Such as 0, for the model's default.
    if not parameter.required:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    return schema


def _narrow(schema: dict[str, Any], shared: dict[str, Any]) -> None:
    """Apply the limits that the field of this name has in every request."""
    options = [shared, *shared.get("anyOf", [])]
    bounds = next((option for option in options if option.get("type") in ("integer", "number", "string")), {})
    for name, choose in (("minimum", max), ("maximum", min), ("minLength", max), ("maxLength", min)):
        values = [each[name] for each in (schema, bounds) if name in each]
        if values:
            schema[name] = choose(values)
    if "enum" in bounds and "enum" not in schema:
        schema["enum"] = bounds["enum"]


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    if value is None or ("enum" in schema and value not in schema["enum"]):
        return False
    if isinstance(value, bool):
        return schema["type"] == "boolean"
    if isinstance(value, str):
        return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    return schema.get("minimum", value) <= value <= schema.get("maximum", value)
