"""How every process logs: lines for people, or one JSON object a line, each with the request and the job it is about.

What a caller wrote (prompts above all) and tokens stay out, unless the setting `log_prompts` asks for prompts: the
texts of the request or job at hand are known here, and a line that repeats one of them loses it.
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

HIDDEN = "[left out]"
OWN_LOGGERS = "bridge"
HARMLESS_FIELDS = {"mode", "model", "output_format", "job_id"}
"""Fields of a request whose texts are names, checked before they are used."""
SHORTEST_PRIVATE = 4
"""A text shorter than this says nothing, and is part of every other word."""
LONGEST_PRIVATE = 2**20
"""A text longer than this is an image in base64: nothing that a line would repeat, and slow to look for."""
WINDOW = 12
"""Libraries quote the beginning or the end of a long text: so many characters in a row give it away."""

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))
_private: ContextVar[frozenset[str]] = ContextVar("private", default=frozenset())


@contextlib.contextmanager
def about(**ids: str) -> Iterator[None]:
    """Everything logged inside is about these: `request_id`, `job_id`. What was kept private inside is forgotten."""
    ids_before, private_before = _about.set({**_about.get(), **ids}), _private.set(_private.get())
    try:
        yield
    finally:
        _about.reset(ids_before)
        _private.reset(private_before)


def bind(**ids: str) -> None:
    """From here to the end of the enclosing `about`, lines are about these as well."""
    _about.set({**_about.get(), **ids})


def keep_private(values: object) -> None:
    """Keep the texts in `values` (JSON) out of the log, to the end of the enclosing `about`."""
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
    """`text` without the lines that repeat one of the private texts or a good part of it."""
    private = list(private)
    if not private:
        return text
    return "\n".join(HIDDEN if _repeats(line, private) else line for line in text.split("\n"))


def _repeats(line: str, private: Iterable[str]) -> bool:
    # Quoted by repr() or JSON, a line end looks different: what is between them is compared.
    for part in (part for text in private for part in text.splitlines() if len(part) >= SHORTEST_PRIVATE):
        size = min(WINDOW, len(part))
        short, long = sorted((part, line), key=len)
        if any(short[start : start + size] in long for start in range(len(short) - size + 1)):
            return True
    return False


def fields(**values: Any) -> dict[str, Any]:
    """`extra=` of a line whose message and fields hold nothing that a caller wrote: `log.info(…, extra=fields(…))`."""
    return {"fields": values}


class Formatter(logging.Formatter):
    """Common to both formats: what a line may say."""

    def __init__(self, *, show_prompts: bool, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._show_prompts = show_prompts
        self._secrets = [secret for secret in secrets if secret]

    def message(self, record: logging.LogRecord) -> str:
        """The line's text. One of another library keeps its first line only: asyncio's go on with what failed."""
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
            # Nobody knows which request this is about, so nothing can be told from what its caller wrote.
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
        """The whole line: a secret may have come as anything, a request id for example."""
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN).replace(json.dumps(secret)[1:-1], HIDDEN)
        return line

    @staticmethod
    def facts(record: logging.LogRecord) -> dict[str, Any]:
        """What the line is about, and its own fields."""
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
        return self.without_secrets(json.dumps(line, ensure_ascii=False, default=str))


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
        return self.without_secrets(text if failure is None else f"{text}\n{failure}")


def what_failed(error: ValidationError) -> str:
    """Which fields a model refused, and why; pydantic's own text quotes their values, and prompts are among them."""
    reasons = ", ".join(f"{'.'.join(map(str, each['loc'])) or 'all'}: {each['type']}" for each in error.errors())
    return f"{error.title}: {reasons}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == OWN_LOGGERS


def _one_line(text: str) -> str:
    """Nobody but us begins a line of the log."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Set this process's logging up. Raises SettingsError where the token file cannot be read."""
    make = JsonFormatter if settings.log_format == "json" else HumanFormatter
    handler = logging.StreamHandler(stream or sys.stderr)
    secrets = [*settings.tokens(), settings.nats_password or "", settings.nats_token or ""]
    handler.setFormatter(make(show_prompts=settings.log_prompts, secrets=secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
