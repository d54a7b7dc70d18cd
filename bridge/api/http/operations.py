"""What each endpoint takes and answers, declared next to its handler: `@operation(...)` below `@routes.get(...)`.

`/openapi.json` is generated from them, and the middleware reads them too (which endpoints wait, which are open). The
gateway does not start with an endpoint that has none.
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
    400: "The request cannot be read: it is malformed, or its body is not JSON.",
    401: "The service requires a token, and the request has none, or a wrong one.",
    403: "The request comes from a web page of another site, or its Host is not a name of the service.",
    404: "There is no such model, mode, job, image or worker.",
    406: "The client accepts no media type that this endpoint answers with.",
    408: "The body did not arrive in time.",
    409: "The job was cancelled.",
    410: "The image of the job is no longer kept.",
    412: "The precondition of a header does not hold.",
    413: "The body, or an image in it, is too large.",
    414: "The URL is too long.",
    415: "This endpoint does not read bodies of this type, charset or encoding.",
    416: "The range is outside the image.",
    417: "The header Expect asks for something else than 100-continue.",
    422: "One or more values are invalid; details lists all of them.",
    429: "The queue is full, too many requests wait, or the client sends too many; see Retry-After.",
    431: "A header is too long, or there are too many.",
    500: "The graph or the service failed; code and message give the cause and the remedy.",
    503: "ComfyUI, the worker or NATS is down or starting, or the model's weights are not available.",
    504: "The job is not done in time; it continues.",
}
"""Every error status. All of them are answered with the same envelope."""
EVERYWHERE = (400, 403, 414, 417, 431, 500)
GUARDED = (401, 429)
"""Errors of every endpoint that is not open."""
WITH_A_QUERY = (422,)
WITH_A_BODY = (408, 413, 415, 422)
PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "job_id": {"type": "string", "pattern": JOB_ID_PATTERN},
    "index": {"type": "integer", "minimum": 0, "description": "Counted from 0."},
    "name": {"type": "string", "description": "A name that GET /v1/modes lists."},
    "model": {"type": "string", "description": "A name that GET /v1/model-info lists."},
}
"""The parameters in paths."""
JOB_LINKS: dict[str, dict[str, str]] = {
    name: {"job_id": "$response.body#/job_id"}
    for name in ("job_state", "job_events", "job_image", "job_archive", "cancel_job")
}
"""What an answer that names a job leads to."""
NAME_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 200}
"""The name of a mode or model in a query."""


@dataclass(frozen=True)
class Answer:
    """A successful answer. Without `model` and `schema` the body is bytes or text of the `media` type."""

    description: str
    model: type[BaseModel] | None = None
    media: str | None = "application/json"
    schema: Mapping[str, Any] | None = None
    other_media: tuple[str, ...] = ()
    """Media types of bytes that the client may ask for instead."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The headers of this answer, with their descriptions."""
    links: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Operations that this answer leads to, by the name of their handler, with where their parameters are in it."""


class Query(NamedTuple):
    """A query parameter, or with `where="header"` a request header."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""
    required: bool = False
    where: str = "query"


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    name: str
    """The name of its handler: `operationId` in OpenAPI."""
    summary: str
    answers: Mapping[int, Answer]
    errors: frozenset[int] = frozenset()
    body: type[BaseModel] | None = None
    body_schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Other bodies, by media type."""
    parameters: tuple[Query, ...] = ()
    waits: bool = False
    """It holds its connection until something happens. The number of such requests is limited."""
    open: bool = False
    """Needs no token, and has no rate limit."""
    page: bool = False
    """Something for a browser or a scraper, and no part of the API."""

    @property
    def ignores_query(self) -> bool:
        """Probes, which take no parameters, and pages, which scripts may call with any, do not look at the query."""
        return self.open or self.page

    @property
    def takes_body(self) -> bool:
        return self.body is not None or bool(self.body_schemas)

    def statuses(self) -> list[int]:
        """Every error status that this operation may answer with."""
        more = (
            *EVERYWHERE,
            *(() if self.open else GUARDED),
            *(() if self.ignores_query else WITH_A_QUERY),
            *(WITH_A_BODY if self.takes_body else ()),
        )
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
    page: bool = False,
) -> Callable[[AnyHandler], AnyHandler]:
    """Declare what a handler takes and answers. `errors` are the statuses besides those that every endpoint has."""
    unknown = set(errors) - set(ERRORS)
    assert not unknown, f"describe {unknown} in ERRORS"

    def keep(handler: AnyHandler) -> AnyHandler:
        name = getattr(handler, "__name__", summary)
        more = (frozenset(errors), body, body_schemas or {}, tuple(parameters), waits, open, page)
        _DECLARED[handler] = Operation(name, summary, answers, *more)
        return handler

    return keep


def declared(handler: Any) -> Operation | None:
    """The declaration of a handler."""
    return _DECLARED.get(handler)


class Route(NamedTuple):
    """A route of the application; `operation` is None if it has no declaration."""

    method: str
    path: str
    operation: Operation | None


def routes_of(app: web.Application) -> Iterator[Route]:
    """Every route except the files of the documentation page, and HEAD."""
    for resource in app.router.resources():
        if isinstance(resource, web.StaticResource):
            continue
        for route in resource:
            if route.method != "HEAD":
                yield Route(route.method, resource.canonical, declared(route.handler))


def check_declared(app: web.Application) -> None:
    """Raise TypeError if a route has no declaration: it would be missing from /openapi.json."""
    missing = [f"{route.method} {route.path}" for route in routes_of(app) if route.operation is None]
    if missing:
        raise TypeError(f"no @operation is declared for {', '.join(missing)}")
