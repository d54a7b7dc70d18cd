"""Refusals that come before any middleware: aiohttp's HTTP parser, and its answer to `Expect`. They are answered in the
error envelope too, and logged as refusals, not as failures of the service."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError, LineTooLong

from bridge import logs
from bridge.api.http.prefix import without_prefix
from bridge.api.http.replies import error_reply
from bridge.contract import shorten
from bridge.settings import Settings

log = logging.getLogger(__name__)
LINGER_S = 1.0
"""How long the rest of a request that cannot be parsed is read and dropped. Closing at once would reset the connection,
and its client would lose the answer."""
LINGER_STEP_S = 0.02
REASON_CHARS = 200


class GatewayRunner(web.AppRunner):
    """A runner whose connections answer refusals of aiohttp's own in the error envelope, and whose requests may have a
    proxy's prefix in their path."""

    __slots__ = ("_settings",)

    def __init__(self, app: web.Application, settings: Settings, **options: Any) -> None:
        super().__init__(app, **options)
        self._settings = settings

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()

        def make_request(message: Any, *others: Any, **options: Any) -> web.BaseRequest:
            return made.request_factory(without_prefix(message, self._settings), *others, **options)

        return _Server(
            made.request_handler,
            request_factory=make_request,
            handler_cancellation=made.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **made._kwargs,  # noqa: SLF001 - aiohttp has no other way to choose the class of connections
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    """One connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that never reached the application, or that it failed to answer."""
        if not isinstance(exc, HttpProcessingError):
            return self._failure(request, status, exc)
        status, code, text = _refusal(exc)
        log.info("a request that cannot be parsed", extra=logs.fields(status=status, code=code, client=request.remote))
        response = _LastAnswer.of(error_reply(status, code, text))
        response.force_close()
        return response

    def _failure(self, request: web.BaseRequest, status: int, exc: BaseException | None) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; it cannot be replaced")
        if isinstance(exc, UnicodeError):  # aiohttp repeats a header in the text of a refusal.
            response = error_reply(400, "bad_request", "a header of the request is not UTF-8")
            response.force_close()
            return response
        log.error("a request failed outside of its handler", exc_info=exc)
        code, text = ("timeout", "the request timed out") if status == 504 else ("internal_error", "see the log")
        response = error_reply(status, code, text)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Called for a body that cannot be read to its end after its request was answered, too."""
        if isinstance(options.get("exc_info"), web.RequestPayloadError):
            log.debug("the rest of a body cannot be read")
        else:
            super().log_exception(*args, **options)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer. An exception is one of aiohttp's own that passed no middleware, such as that of `Expect`."""
        if isinstance(resp, web.HTTPException):
            text = f"{request.method} {shorten(request.path)}: {resp.reason}"
            if resp.status == 417:
                text = f"Expect {shorten(request.headers.get('Expect', ''))} is not known; 100-continue is"
            log.info("a request refused early", extra=logs.fields(status=resp.status, client=request.remote))
            resp = error_reply(resp.status, resp.reason.lower().replace(" ", "_"), text)
        return await super().finish_response(request, resp, start_time)


def _refusal(error: HttpProcessingError) -> tuple[int, str, str]:
    """Status, code and message for what the parser refuses."""
    if isinstance(error, ContentEncodingError):
        return 415, "unsupported_media_type", "the Content-Encoding is not known; send gzip, deflate, or no encoding"
    if isinstance(error, LineTooLong):
        limit = error.args[1]
        # The parser collects a URL in a bytearray, and hands out names and values of headers as bytes.
        if isinstance(error.args[0], bytearray):
            return 414, "uri_too_long", f"the URL has more than {limit} bytes"
        return 431, "headers_too_large", f"a header has more than {limit} bytes"
    if "Too many headers" in error.message:
        return 431, "headers_too_large", "the request has too many headers"
    reason = shorten(error.message.partition("\n")[0].rstrip(": ") or type(error).__name__, REASON_CHARS)
    return 400, "bad_request", f"this is not a valid HTTP request: {reason}"


class _LastAnswer(web.Response):
    """The answer to a request whose rest cannot be read: it is sent whole before the connection closes."""

    @classmethod
    def of(cls, answer: web.Response) -> _LastAnswer:
        return cls(status=answer.status, body=answer.body, headers=answer.headers)

    async def write_eof(self, data: bytes = b"") -> None:
        request = self._req
        await super().write_eof(data)
        if request is None or (transport := request.transport) is None:
            return
        request.protocol.close()  # What still arrives is dropped unread.
        if transport.can_write_eof():
            transport.write_eof()
        for _ in range(int(LINGER_S / LINGER_STEP_S)):
            if request.transport is None or transport.is_closing():
                return
            await asyncio.sleep(LINGER_STEP_S)
