"""Distributed tracing: the W3C trace context of a request or job, and spans where OpenTelemetry is installed.

Without OpenTelemetry's packages the context of the caller is passed on as it came, to the job, the worker, ComfyUI and
webhooks. With them each step is a span, and what is passed on is that span. Every line of the log has the `trace_id`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from bridge import logs

try:
    from opentelemetry import trace as otel
except ImportError:  # The extra `otel` is not installed.
    otel = None

PARENT, STATE = "traceparent", "tracestate"
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(-.*)?"
)
MAX_PARENT_CHARS = 255
MAX_STATE_CHARS = 512
"""What everybody has to pass on (W3C Trace Context, 3.3.1.5). A longer state is dropped as a whole, as it allows."""
STATE_TEXT = re.compile(r"[\x20-\x7e]*")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
Kind = Literal["server", "consumer", "client", "internal"]


@dataclass(frozen=True)
class Trace:
    """A trace context, as the two headers carry it."""

    parent: str
    state: str | None = None

    @classmethod
    def read(cls, parent: str | None, state: str | None = None) -> Trace | None:
        """The context that a caller sent. None if there is none, or none that is valid: then it is ignored."""
        text = (parent or "").strip()
        if len(text) > MAX_PARENT_CHARS or (match := TRACEPARENT.fullmatch(text)) is None:
            return None
        if text.startswith("00") and len(text) != 55:
            return None
        if set(match["trace"]) == {"0"} or set(match["span"]) == {"0"}:
            return None
        state = (state or "").strip()
        usable = 0 < len(state) <= MAX_STATE_CHARS and STATE_TEXT.fullmatch(state)
        # Of a later version only the part that this one knows is passed on.
        return cls(f"00-{match['trace']}-{match['span']}-{match['flags']}", state if usable else None)

    @property
    def trace_id(self) -> str:
        """The id of the whole trace: 32 hexadecimal digits."""
        return self.parent[3:35]

    def headers(self) -> dict[str, str]:
        """The headers that pass it on."""
        return {PARENT: self.parent, **({STATE: self.state} if self.state else {})}


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace | None:
    """The context of what is being done now: that of this module, or of a span that the program around it began."""
    return _current.get() or _from_span(otel.get_current_span() if otel else None)


def headers() -> dict[str, str]:
    """The headers that pass the current context on; empty if there is none."""
    trace = current()
    return trace.headers() if trace else {}


def of(headers: Mapping[str, str] | None) -> Trace | None:
    """The context in the headers of a request or message; their names in lower case, or in any if the mapping allows
    it."""
    found = headers or {}
    return Trace.read(found.get(PARENT), found.get(STATE))


@contextlib.contextmanager
def entered(trace: Trace | None) -> Iterator[None]:
    """Make a context the current one. None changes nothing."""
    if trace is None:
        yield
        return
    token = _current.set(trace)
    try:
        with logs.about(trace_id=trace.trace_id):
            yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def span(name: str, kind: Kind, parent: Trace | None = None, **attributes: Any) -> Iterator[Span]:
    """A step that is traced. Its `parent` came from elsewhere; None: the current context.

    An exception marks the span as failed, and goes on.
    """
    parent = parent or current()
    if otel is None:
        with entered(parent):
            yield Span(None)
        return
    tracer = otel.get_tracer("bridge")
    known = {f"imagegen.{key}": value for key, value in attributes.items() if value is not None}
    started_span = tracer.start_as_current_span(
        name,
        context=_context(parent),
        kind=otel.SpanKind[kind.upper()],
        attributes=known,
        record_exception=False,  # Messages of exceptions quote prompts.
        set_status_on_exception=False,
    )
    with started_span as started, entered(_from_span(started) or parent):
        recorded = Span(started)
        try:
            yield recorded
        except Exception as error:
            recorded.fail(type(error).__name__)
            raise


class Span:
    """A span that is being recorded, or none."""

    def __init__(self, recorded: Any) -> None:
        self._recorded = recorded

    def set(self, **attributes: Any) -> None:
        """Add attributes."""
        if self._recorded is not None:
            for key, value in attributes.items():
                if value is not None:
                    self._recorded.set_attribute(f"imagegen.{key}", value)

    def fail(self, cause: str) -> None:
        """Mark the step as failed. `cause` is a code, never a text of the caller."""
        if self._recorded is not None and otel is not None:
            self._recorded.set_status(otel.Status(otel.StatusCode.ERROR, cause))


def _from_span(started: Any) -> Trace | None:
    if started is None or not (context := started.get_span_context()).is_valid:
        return None
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    return Trace(parent, context.trace_state.to_header() or None)


def _context(parent: Trace | None) -> Any:
    """OpenTelemetry's context for a parent from elsewhere; None: its own current one."""
    assert otel is not None
    if parent is None:
        return None
    context = otel.SpanContext(
        trace_id=int(parent.parent[3:35], 16),
        span_id=int(parent.parent[36:52], 16),
        is_remote=True,
        trace_flags=otel.TraceFlags(int(parent.parent[53:55], 16)),
        trace_state=otel.TraceState.from_header([parent.state or ""]),
    )
    return otel.set_span_in_context(otel.NonRecordingSpan(context))


def configure(role: str, env: Mapping[str, str] = os.environ) -> None:
    """Send this process's spans where the OTEL_ variables say, if they do and OpenTelemetry's SDK is installed.

    A provider that is set already, as `opentelemetry-instrument` does, stays.
    """
    wanted = any(env.get(name) for name in ENDPOINTS) and env.get("OTEL_SDK_DISABLED", "").lower() != "true"
    if not wanted or otel is None or importlib.util.find_spec("opentelemetry.sdk") is None:
        return
    if not isinstance(otel.get_tracer_provider(), otel.ProxyTracerProvider):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = env.get("OTEL_SERVICE_NAME") or f"imagegen-{role}"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    otel.set_tracer_provider(provider)
