"""Logging of every process: lines for people, or one JSON object a line, each with its request id and job id.

Tokens never appear, and text from callers (prompts above all) appears only with the setting `log_prompts`: this module
knows the texts of the current request or job, and hides every line that repeats one of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TextIO

from pydantic import ValidationError

from bridge.settings import Settings
from bridge.terminal import safe_text

HIDDEN = "[left out]"
OWN_LOGGERS = "bridge"
HARMLESS_FIELDS = {"mode", "model", "output_format", "job_id"}
"""Fields of a request that hold names, which are validated before use."""
SHORTEST_PRIVATE = 4
"""A shorter text reveals nothing, and would match parts of ordinary words."""
LONGEST_PRIVATE = 2**20
"""A longer text is an image in base64: no line repeats it, and searching for it is slow."""
WINDOW = 12
"""Libraries quote the start or the end of a long text: this many matching characters in a row count as a quote."""

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))
_private: ContextVar[frozenset[str]] = ContextVar("private", default=frozenset())


@contextlib.contextmanager
def about(**ids: str) -> Iterator[None]:
    """Add `request_id` or `job_id` to every line logged inside. On exit, texts kept private inside are forgotten."""
    ids_before, private_before = _about.set({**_about.get(), **ids}), _private.set(_private.get())
    try:
        yield
    finally:
        _about.reset(ids_before)
        _private.reset(private_before)


def bind(**ids: str) -> None:
    """Add these ids to every line until the enclosing `about` ends."""
    _about.set({**_about.get(), **ids})


def keep_private(values: object) -> None:
    """Keep the texts in `values` (JSON) out of the log until the enclosing `about` ends."""
    _private.set(_private.get() | frozenset(_texts(values)))


def _texts(value: object, name: str = "") -> Iterator[str]:
    if isinstance(value, str):
        if SHORTEST_PRIVATE <= len(value) <= LONGEST_PRIVATE and name not in HARMLESS_FIELDS:
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name)


def scrub(text: str, private: Iterable[str]) -> str:
    """`text` with every line hidden that repeats one of the private texts, or a long enough part of it."""
    private = list(private)
    if not private:
        return text
    return "\n".join(HIDDEN if _repeats(line, private) else line for line in text.split("\n"))


def _repeats(line: str, private: Iterable[str]) -> bool:
    # repr() and JSON escape line ends, so the comparison is line by line.
    for part in (part for text in private for part in text.splitlines() if len(part) >= SHORTEST_PRIVATE):
        size = min(WINDOW, len(part))
        short, long = sorted((part, line), key=len)
        if any(short[start : start + size] in long for start in range(len(short) - size + 1)):
            return True
    return False


def fields(**values: Any) -> dict[str, Any]:
    """The `extra` of a line that holds no text from a caller: `log.info("…", extra=fields(count=3))`."""
    return {"fields": values}


class Formatter(logging.Formatter):
    """Common to both formats: which text a line may contain."""

    def __init__(self, *, show_prompts: bool, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._show_prompts = show_prompts
        self._secrets = [secret for secret in secrets if secret]

    def message(self, record: logging.LogRecord) -> str:
        """The message of a line. Of other libraries' messages only the first line: asyncio's go on with the failure."""
        text = record.getMessage()
        if hasattr(record, "fields"):
            return text
        if not self._show_prompts and not _is_own(record):
            text = text.partition("\n")[0]
        return self._clean(text)

    def failure(self, record: logging.LogRecord) -> str | None:
        """The traceback, or None."""
        if not record.exc_info or record.exc_info[1] is None:
            return None
        if not self._show_prompts and not _is_own(record):
            # The request is not known, so text from its caller cannot be recognised.
            return f"{type(record.exc_info[1]).__name__}: {HIDDEN}"
        text = self.formatException(record.exc_info)
        if not self._show_prompts:
            for error in _chain(record.exc_info[1]):
                if isinstance(error, ValidationError):
                    text = text.replace(str(error), what_failed(error))
        return self._clean(text)

    def _clean(self, text: str) -> str:
        return text if self._show_prompts else scrub(text, _private.get())

    def without_secrets(self, line: str) -> str:
        """`line` with every secret hidden: a caller may have sent one in any field, such as a request id."""
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN).replace(json.dumps(secret)[1:-1], HIDDEN)
        return line

    @staticmethod
    def facts(record: logging.LogRecord) -> dict[str, Any]:
        """The ids of the current request and job, and the line's own fields."""
        return {**_about.get(), **getattr(record, "fields", {})}


class JsonFormatter(Formatter):
    """One object a line: time (UTC), level, logger, message, then request_id, job_id and the line's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message(record),
            **self.facts(record),
        }
        if failure := self.failure(record):
            line["exception"] = failure
        return safe_text(self.without_secrets(json.dumps(line, ensure_ascii=False, default=str)))


class HumanFormatter(Formatter):
    """`17:59:01.123 INFO    gateway: message (field value, …)`, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        message, name = self.message(record), record.name.removeprefix(OWN_LOGGERS + ".")
        said = (None, *message.split())
        facts = ", ".join(f"{key} {value}" for key, value in self.facts(record).items() if value not in said)
        text = f"{moment}.{int(record.msecs):03d} {record.levelname:<7} {name}: {message}"
        text = _one_line(text + (f" ({facts})" if facts else ""))
        failure = self.failure(record)
        return safe_text(self.without_secrets(text if failure is None else f"{text}\n{failure}"))


def what_failed(error: ValidationError) -> str:
    """Which fields failed validation, and why, without their values: pydantic's own text would quote prompts."""
    reasons = ", ".join(f"{'.'.join(map(str, each['loc'])) or 'all'}: {each['type']}" for each in error.errors())
    return f"{error.title}: {reasons}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == OWN_LOGGERS


def _one_line(text: str) -> str:
    """Escape line ends, so that no message can forge a line of the log."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Set up logging for this process. Raises SettingsError if the token file cannot be read."""
    make = JsonFormatter if settings.log_format == "json" else HumanFormatter
    handler = logging.StreamHandler(stream or sys.stderr)
    secrets = [*settings.tokens(), *settings.secrets()]
    handler.setFormatter(make(show_prompts=settings.log_prompts, secrets=secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
