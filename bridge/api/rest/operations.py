"""What each endpoint takes and answers, declared beside its handler: `@operation(...)` below `@routes.get(...)`.

`/openapi.json` is made of these declarations, and the guards of the doors read them too (which routes wait, which are
open), so that there is one place to look. A route without one does not start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from aiohttp import web
from pydantic import BaseModel

from bridge.contract import JOB_ID_PATTERN

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
AnyHandler = TypeVar("AnyHandler", bound=Handler)

ERRORS = {
    400: "The request cannot be read: it is not HTTP, or its body is not JSON.",
    401: "The service has a token, and the request does not carry it.",
    403: "A browser's request from another site, or a name that is not the service's.",
    404: "No such model, mode, job or image.",
    408: "The body did not arrive in time.",
    409: "The job was cancelled, or the request contradicts what is there.",
    410: "The job is known, and its image is no longer kept.",
    412: "The precondition of a header does not hold.",
    413: "The body, or an image in it, is too large.",
    415: "The body is of a type that this endpoint does not read.",
    416: "The range lies outside the image.",
    422: "One or more values are wrong; details names every one.",
    429: "The queue is full, too much waits, or requests come too fast; Retry-After says when to try again.",
    500: "The graph failed, or the service did; code and message say the cause and the remedy.",
    503: "ComfyUI, the worker or NATS is down or starting, or the model's weights cannot be had.",
    504: "The job is not done yet; it goes on.",
}
"""Every status of an error; each is answered with the one envelope."""
EVERYWHERE = (400, 403, 500)
GUARDED = (401, 429)
"""Of every endpoint that is not open."""
WITH_A_BODY = (408, 413, 415, 422)
PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "job_id": {"type": "string", "pattern": JOB_ID_PATTERN},
    "index": {"type": "integer", "minimum": 0, "description": "Counted from 0."},
    "name": {"type": "string", "description": "A name that GET /v1/modes lists."},
    "model": {"type": "string", "description": "A name that GET /v1/model-info lists."},
}
"""What stands in the braces of a path."""


@dataclass(frozen=True)
class Answer:
    """An answer that is no error. Without `model` and `schema` the body is bytes or text of the `media` type."""

    description: str
    model: type[BaseModel] | None = None
    media: str | None = "application/json"
    schema: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of this answer, with their descriptions."""


class Query(NamedTuple):
    """A parameter behind the question mark, or with `where="header"` a request header."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""
    required: bool = False
    where: str = "query"


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    summary: str
    answers: Mapping[int, Answer]
    errors: frozenset[int] = frozenset()
    body: type[BaseModel] | None = None
    body_schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further bodies, by media type."""
    parameters: tuple[Query, ...] = ()
    waits: bool = False
    """It holds its connection until something happens: such requests are bounded in number."""
    open: bool = False
    """Answered without a token and at any rate."""

    @property
    def takes_body(self) -> bool:
        return self.body is not None or bool(self.body_schemas)

    def statuses(self) -> list[int]:
        """Every status of an error that this operation may answer with."""
        more = (*EVERYWHERE, *(() if self.open else GUARDED), *(WITH_A_BODY if self.takes_body else ()))
        return sorted({*self.errors, *more})


_DECLARED: dict[Any, Operation] = {}


def operation(
    summary: str,
    *,
    answers: Mapping[int, Answer],
    errors: Iterable[int] = (),
    body: type[BaseModel] | None = None,
    body_schemas: Mapping[str, Mapping[str, Any]] | None = None,
    parameters: Iterable[Query] = (),
    waits: bool = False,
    open: bool = False,  # noqa: A002 - the word for it
) -> Callable[[AnyHandler], AnyHandler]:
    """Declare what a handler takes and answers. `errors` are the statuses beyond those that go without saying."""
    unknown = set(errors) - set(ERRORS)
    assert not unknown, f"describe {unknown} in ERRORS"
    declared = Operation(
        summary, answers, frozenset(errors), body, body_schemas or {}, tuple(parameters), waits=waits, open=open
    )

    def keep(handler: AnyHandler) -> AnyHandler:
        _DECLARED[handler] = declared
        return handler

    return keep


def declared(handler: Any) -> Operation | None:
    """The declaration of a handler."""
    return _DECLARED.get(handler)


class Route(NamedTuple):
    """A route of the application; `operation` is None where it was forgotten."""

    method: str
    path: str
    operation: Operation | None


def routes_of(app: web.Application) -> Iterator[Route]:
    """Every route but the files of the documentation page. HEAD is GET without the body."""
    for resource in app.router.resources():
        if isinstance(resource, web.StaticResource):
            continue
        for route in resource:
            if route.method != "HEAD":
                yield Route(route.method, resource.canonical, declared(route.handler))


def check_declared(app: web.Application) -> None:
    """Raise where a route has no declaration: what /openapi.json does not say, no client can rely on."""
    missing = [f"{route.method} {route.path}" for route in routes_of(app) if route.operation is None]
    if missing:
        raise TypeError(f"no @operation is declared for {', '.join(missing)}")
