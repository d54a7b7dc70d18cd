"""Queries are checked like bodies: by what the endpoint declares, which is also what `/openapi.json` says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from bridge.api.http.operations import Handler, Query, declared
from bridge.contract import ErrorDetail, InvalidRequest, decimal_number, shown, whole_number

MAX_UNKNOWN = 20


@web.middleware
async def checked_query(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a query that the endpoint does not take. Pages and probes, which take none, ignore what is added."""
    operation = declared(request.match_info.handler)
    if operation is not None and not operation.ignores_query:
        known = {query.name: query for query in operation.parameters if query.where == "query"}
        if details := _problems(request, known):
            raise InvalidRequest.of(details)
    return await handler(request)


def _problems(request: web.Request, known: Mapping[str, Query]) -> list[ErrorDetail]:
    details: list[ErrorDetail] = []
    unknown = [name for name in dict.fromkeys(request.query) if name not in known]
    names = ", ".join(known) or "none"
    for name in unknown[:MAX_UNKNOWN]:
        message = f"there is no query parameter {shown(name)} here; this endpoint takes {names}"
        details.append(ErrorDetail(field=name, message=message))
    for name, query in known.items():
        texts = request.query.getall(name, [])
        if len(texts) > 1:
            details.append(ErrorDetail(field=name, message=f"{name} is given {len(texts)} times; give it once"))
        elif texts and (problem := problem_of(name, texts[0], query.schema)):
            details.append(ErrorDetail(field=name, message=problem))
        elif query.required and not texts:
            details.append(ErrorDetail(field=name, message=f"{name} is required: {request.path}?{name}=…"))
    return details


def problem_of(name: str, text: str, schema: Mapping[str, Any]) -> str | None:
    """What is wrong with the text of a parameter, in a sentence; None if it fits its schema."""
    if not text:
        return f"{name} is empty; give it a value, or leave it out"
    options = schema.get("anyOf", [schema])
    problems = [_mismatch(text, option) for option in options]
    if None in problems:
        return None
    # Of several types the one that the text comes closest to: a number out of bounds is still a number.
    return f"{name} {shown(text)} {next((each for each in problems if each and 'bound' in each), problems[-1])}"


def _mismatch(text: str, schema: Mapping[str, Any]) -> str | None:
    if "enum" in schema and text not in schema["enum"]:
        return f"is not one of {', '.join(schema['enum'])}"
    match schema.get("type"):
        case "integer" | "number" as kind:
            number = whole_number(text) if kind == "integer" else decimal_number(text)
            if number is None:
                return f"is not {'a whole number' if kind == 'integer' else 'a number'}, in ASCII digits"
            low, high = schema.get("minimum", number), schema.get("maximum", number)
            if not low <= number <= high:
                return f"is out of bounds: from {low} to {high}" + schema.get("x-hint", "")
        case "boolean" if text not in ("true", "false"):
            return "is neither true nor false"
        case "string":
            if len(text) > schema.get("maxLength", len(text)):
                return f"is too long: it has {len(text)} characters, at most {schema['maxLength']} are allowed"
            if schema.get("format") == "date-time" and _moment(text) is None:
                return "is neither seconds since the epoch nor a time such as 2026-01-31T12:00:00Z"
            if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), text):
                return schema.get("x-hint") or f"does not match {schema['pattern']}"
    return None


def read_time(text: str) -> float | None:
    """Seconds since the epoch for a number, or for a time in ISO 8601; None for any other text."""
    number = decimal_number(text)
    return _moment(text) if number is None else number


def _moment(text: str) -> float | None:
    if decimal_number(text) is not None:
        return None  # 20260131 is a number, though Python reads it as a date.
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # An unquoted + in a query is a space.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
