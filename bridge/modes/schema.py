"""The JSON Schema of requests to a mode: the graph's parameters, within the limits of every request."""

from __future__ import annotations

from typing import Any

from bridge.contract import ImageGenRequest, ModelInfoResponse, media_type_of
from bridge.modes.library import Mode
from bridge.modes.model_limits import Most, limit_schema
from bridge.modes.parameters import UPLOADS, Parameter, ParameterKind

SHARED_FIELDS = ("job_id", "callback_url", "cancel_on_disconnect", "priority")
"""Fields of every request that are not parameters of a graph. The path names the mode."""
IMAGE_TEXT = (
    "base64, a data URL, an https URL where the service allows them, or job:<id>/<n>, an image of an earlier job; in a "
    "form: the file itself"
)
FILE_TEXT = "base64, a data URL, or job:<id>/<n>, a file of an earlier job; in a form: the file itself"


def request_schema(mode: Mode, models: ModelInfoResponse | None = None, most: Most | None = None) -> dict[str, Any]:
    """The body of `POST /v1/modes/{name}`. Null means the default of the model or the graph, as if left out.

    With the `models` and the limits of the service, the schema holds all that is enforced.
    """
    fields = ImageGenRequest.model_json_schema()["properties"]
    properties = {name: _property(parameter, fields.get(name)) for name, parameter in mode.parameters.items()}
    for name in mode.left_open:
        properties[name].pop("default", None)
    properties |= {name: fields[name] for name in SHARED_FIELDS}
    properties["mode"] = {"enum": [mode.name, None], "description": "May be left out: the path names the mode."}
    schema = {
        "title": mode.title,
        "description": mode.description,
        "type": "object",
        "properties": properties,
        "required": [name for name, parameter in mode.parameters.items() if parameter.required],
        "additionalProperties": False,
    }
    if most is not None:
        model = (mode.own_model or (models.default_model if models else None)) if mode.takes_model else None
        limit_schema(schema, models, model, most)
    return schema


def form_schema(mode: Mode, models: ModelInfoResponse | None = None, most: Most | None = None) -> dict[str, Any]:
    """The same as a form: every field is a text, every image or other file a file."""
    schema = request_schema(mode, models, most)
    for name, parameter in mode.parameters.items():
        if parameter.kind in UPLOADS:
            text = {"type": "string", "contentMediaType": _media(parameter), "description": parameter.description}
            schema["properties"][name] = text
    return _without_null(schema)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a form: its fields are texts, and what JSON gives as null is empty there, or left out."""
    properties = {name: _not_null(each) for name, each in schema["properties"].items()}
    variants = [_without_null(each) for each in schema.get("anyOf", [])]
    return {**schema, "properties": properties} | ({"anyOf": variants} if variants else {})


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in schema.items() if name != "default" or value is not None}
    if isinstance(kept.get("type"), list):
        kept["type"] = next(kind for kind in kept["type"] if kind != "null")
    if "enum" in kept:
        kept["enum"] = [value for value in kept["enum"] if value is not None]
    if "anyOf" in kept:
        [kept_option] = [option for option in kept.pop("anyOf") if option.get("type") != "null"]
        kept |= kept_option
    return {**kept, "maxLength": 0, "type": "string"} if kept.get("type") == "null" else kept


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
    schema |= {name: bounds[name] for name in ("pattern",) if name in bounds and schema["type"] == "string"}
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
