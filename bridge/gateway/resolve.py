"""From a caller's request to a fully resolved job: defaults filled in, every limit checked. Pure functions."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args
from uuid import uuid4

from pydantic import JsonValue, ValidationError

from bridge import clock
from bridge.contract import (
    DEFAULT_MODE,
    ErrorDetail,
    ImageGenRequest,
    IntegerLimit,
    InvalidRequest,
    Job,
    JobKind,
    ModelInfo,
    ModelInfoResponse,
    UnknownModel,
    as_whole,
    decimal_number,
    shorten,
    shown,
    whole_number,
)
from bridge.gateway.limits import RequestLimits
from bridge.gateway.requests import FormText
from bridge.modes.library import Mode, ModeLibrary
from bridge.modes.parameters import Parameter, ParameterKind

RANDOM_SEED_BITS = 32
"""Random seeds are short enough to read out and type in again."""

SERVICE_FIELDS = {"job_id", "mode", "callback_url", "cancel_on_disconnect", "priority"}
"""Request fields that are not parameters of a graph."""
FORM_KINDS: dict[ParameterKind, type] = {
    ParameterKind.INTEGER: int,
    ParameterKind.SEED: int,
    ParameterKind.NUMBER: float,
    ParameterKind.BOOLEAN: bool,
}
FORM_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
REQUEST_DEFAULTS: dict[str, JsonValue] = {"num_images": 1, "output_format": "png"}
"""Values of fields that a request leaves open, where the graph has none of its own."""
MAX_UNKNOWN_FIELDS = 20
"""The most unknown fields that an error names one by one."""
MAX_NAMES = 40
"""The most names that an error lists."""


class Checked(NamedTuple):
    """A request whose types have been checked. `details` lists what is wrong with it."""

    values: dict[str, Any]
    details: list[ErrorDetail]


def find_mode(body: Mapping[str, Any], modes: ModeLibrary) -> Mode:
    """The mode of a request, or the default mode. Raises UnknownMode, BrokenMode and InvalidRequest."""
    name = body.get("mode")
    if name is not None and not isinstance(name, str):
        raise InvalidRequest(f"mode must be a string, not {shown(name)}", field="mode")
    return modes.get(name or DEFAULT_MODE)


def form_values(body: Mapping[str, Any], mode: Mode) -> dict[str, Any]:
    """The texts of a form, converted to the types of their fields. A text that cannot be converted stays as it is and
    fails validation later, together with any other mistakes. Values that came as JSON stay too."""
    return {
        name: _form_value(str(value), _form_kind(name, mode)) if isinstance(value, FormText) else value
        for name, value in body.items()
    }


def _form_value(text: str, kind: type) -> Any:
    if kind is bool:
        return FORM_BOOLEANS.get(text.lower(), text)
    # Not int() and float(): those take 1_000, spaces, digits of any script, and inf.
    number = whole_number(text) if kind is int else decimal_number(text) if kind is float else None
    return text if number is None else number


def _form_kind(name: str, mode: Mode) -> type:
    if name in mode.parameters:
        return FORM_KINDS.get(mode.parameters[name].kind, str)
    field = ImageGenRequest.model_fields.get(name)
    kinds = (field.annotation, *get_args(field.annotation)) if field else ()
    return next((kind for kind in (bool, int, float) if kind in kinds), str)


def check_types(body: Mapping[str, Any], *, needs_prompt: bool = True) -> Checked:
    """Validate a request against `ImageGenRequest`. Fields that fail are left out of the values, so that the others can
    still be checked against the model, and the caller learns of all mistakes at once."""
    values = dict(body)
    if values.get("prompt") is None:
        values.pop("prompt", None)
        if not needs_prompt:
            values["prompt"] = "-"  # A placeholder, as below; the caller removes it.
    details: list[ErrorDetail] = []
    while True:
        try:
            request = ImageGenRequest.model_validate(values)
        except ValidationError as error:
            details += [_detail(item, values) for item in error.errors(include_url=False)]
            bad = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
            values = {name: value for name, value in values.items() if name not in bad}
            if "prompt" not in values:
                values["prompt"] = "-"  # A placeholder, so that the other fields are checked; details has the mistake.
        else:
            return Checked(request.model_dump(), details)


def _detail(error: Any, values: Mapping[str, Any]) -> ErrorDetail:
    field = ".".join(str(part) for part in error["loc"]) or None
    if error["type"] == "missing":
        return ErrorDetail(field=field, message=f"{field} is required")
    reason = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    return ErrorDetail(field=field, message=f"{field} {shown(error.get('input'))}: {reason}")


def make_job(
    body: Mapping[str, Any],
    modes: ModeLibrary,
    models: ModelInfoResponse,
    now: float,
    problems: Sequence[ErrorDetail] = (),
    limits: RequestLimits = RequestLimits(),  # noqa: B008 - frozen
    mode: Mode | None = None,
) -> Job:
    """The job for a request. `problems` are those of fields that the caller has removed from `body`; `mode` is the mode
    with its current options, if the caller has it.

    Raises UnknownMode, BrokenMode and UnknownModel, and InvalidRequest with every bad field in its details.
    """
    mode = mode or find_mode(body, modes)
    prompt = mode.parameters.get("prompt")
    needs_prompt = prompt is not None and prompt.required
    values, details = check_types(body, needs_prompt=needs_prompt)
    details = [*problems, *details]
    if not needs_prompt and body.get("prompt") is None:
        del values["prompt"]
    model = _find_model(values, mode, models)
    parameters = {
        name: _whole(value, mode.parameters.get(name))
        for name, value in values.items()
        if name not in SERVICE_FIELDS and value is not None
    }
    parameters |= _own_defaults(body, mode)
    if model:
        parameters["model"] = model.name
    warnings: list[str] = []
    better = models.better_model
    if model and better and not (values.get("model") or mode.own_model):
        warnings.append(
            f"no model was named, so {model.name} is used; {better.name} suits this machine better, but has to be "
            f"downloaded first: imagegen load {better.name}"
        )
    if model:
        parameters = {**_model_defaults(model, mode), **parameters}
        details += _model_problems(parameters, model)
        if parameters.get("negative_prompt") and not model.limits.negative_prompt:
            warnings.append(f"negative_prompt has no effect: {model.name} is guidance-distilled and does not use one")
    for name in mode.seeds:
        parameters.setdefault(name, secrets.randbits(RANDOM_SEED_BITS))
    for more in (_mode_problems(parameters, body, mode), limits.problems(parameters)):
        named = {detail.field for detail in details}
        details += [detail for detail in more if detail.field not in named]
    if details:
        raise InvalidRequest.of(details)
    return Job(
        job_id=values["job_id"] or str(uuid4()),
        kind=JobKind.GENERATE,
        mode=mode.name,
        model=model.name if model else None,
        parameters={name: value for name, value in parameters.items() if name in mode.parameters},
        submitted_at=now,
        submitted_clock=clock.stamp(),
        warnings=warnings,
        callback_url=values["callback_url"],
        priority=values["priority"] or "normal",
    )


def _whole(value: Any, parameter: Parameter | None) -> Any:
    return as_whole(value) if parameter is not None and FORM_KINDS.get(parameter.kind) is int else value


def _own_defaults(body: Mapping[str, Any], mode: Mode) -> dict[str, JsonValue]:
    """The graph's values for fields that the request leaves out and that also have a default in the request model."""
    own = {name: mode.parameters[name].default for name in REQUEST_DEFAULTS if name in mode.parameters}
    return {name: own.get(name) or default for name, default in REQUEST_DEFAULTS.items() if body.get(name) is None}


def make_load_job(model_name: str, models: ModelInfoResponse, now: float) -> Job:
    """The job that loads a model. Raises UnknownModel."""
    model = _known(model_name, models, "model_name")
    return Job(
        job_id=str(uuid4()),
        kind=JobKind.LOAD,
        mode="load",
        model=model.name,
        parameters={},
        submitted_at=now,
        submitted_clock=clock.stamp(),
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(shorten(name) for name in names[:MAX_NAMES]) + more if names else "none"


def _find_model(values: Mapping[str, Any], mode: Mode, models: ModelInfoResponse) -> ModelInfo | None:
    if not mode.takes_model:
        return None
    return _known(values.get("model") or mode.own_model or models.default_model, models, "model")


def _known(name: str, models: ModelInfoResponse, field: str) -> ModelInfo:
    model = models.find(name)
    if model is None:
        raise UnknownModel(
            f"no model is called {shown(name)}; available: {_listed(m.name for m in models.models)}", field=field
        )
    return model


def _model_defaults(model: ModelInfo, mode: Mode) -> dict[str, JsonValue]:
    """The defaults of the model. Modes that take an image get no size: their graph may follow the image."""
    names = set(mode.parameters)
    if any(parameter.kind is ParameterKind.IMAGE for parameter in mode.parameters.values()):
        names -= {"width", "height"}
    return {name: value for name, value in model.defaults.model_dump().items() if name in names}


def _model_problems(parameters: Mapping[str, Any], model: ModelInfo) -> list[ErrorDetail]:
    """Every value that the model does not accept."""
    limits = model.limits
    details = [
        ErrorDetail(field=name, message=message)
        for name in ("width", "height", "num_inference_steps", "num_images")
        if name in parameters and (message := _integer_problem(name, parameters[name], getattr(limits, name), model))
    ]
    guidance = parameters.get("guidance_scale")
    bounds = limits.guidance_scale
    if guidance is not None and not bounds.min <= guidance <= bounds.max:
        message = (
            f"guidance_scale {shown(guidance)} is outside {bounds.min:g} to {bounds.max:g}, the range of {model.name}"
        )
        details.append(ErrorDetail(field="guidance_scale", message=message))
    return details


def _integer_problem(name: str, value: int, limit: IntegerLimit, model: ModelInfo) -> str | None:
    if limit.choices and value not in limit.choices:
        choices = ", ".join(map(str, limit.choices))
        return f"{name} {value} is not a value that {model.name} was made for: choose one of {choices}"
    if not limit.min <= value <= limit.max:
        return f"{name} {value} is outside {limit.min} to {limit.max}, the range of {model.name}"
    if value % limit.multiple_of:
        below = value - value % limit.multiple_of
        near = [n for n in (below, below + limit.multiple_of) if limit.min <= n <= limit.max]
        return f"{name} {value} is not a multiple of {limit.multiple_of}; nearest: {' and '.join(map(str, near))}"
    return None


def _mode_problems(parameters: Mapping[str, Any], body: Mapping[str, Any], mode: Mode) -> list[ErrorDetail]:
    """Every value that the graph does not accept, and every field that it does not have."""
    known = {**mode.parameters}
    unknown = [name for name in body if name not in known and name not in SERVICE_FIELDS and body[name] is not None]
    names = _listed(known)
    details = [
        ErrorDetail(field=name, message=f"mode {mode.name} has no parameter {shown(name)}; it has {names}")
        for name in unknown[:MAX_UNKNOWN_FIELDS]
    ]
    if (more := len(unknown) - MAX_UNKNOWN_FIELDS) > 0:
        details.append(ErrorDetail(field=None, message=f"{more} more fields are no parameters of mode {mode.name}"))
    for name, parameter in known.items():
        if name not in parameters:
            if parameter.required:
                details.append(ErrorDetail(field=name, message=f"{name} is required"))
        elif message := parameter.problem(parameters[name]):
            details.append(ErrorDetail(field=name, message=message))
    return details
