"""A TCP proxy before ComfyUI that does to its websocket what networks and stalled peers do."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class TcpProxy:
    """Passes connections on to a port; `refuse_websocket`, `mute` and `drop_websockets` are its faults."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._websockets: set[asyncio.StreamWriter] = set()
        self._deaf: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.websockets_seen = 0
        self.refuse_websocket = False
        self.lose_answer = False  # the next POST /prompt arrives, its answer does not
        self.mute = False  # what the server sends on websockets that are open now is swallowed
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop_websockets(self) -> None:
        for writer in self._websockets:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        answers, upstream = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await asyncio.gather(self._pump(reader, upstream, writer), self._pump_back(answers, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._websockets.discard(writer)
            self._tasks.discard(task)
            for end in (writer, upstream):
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, client: asyncio.StreamWriter):
        while data := await reader.read(65536):
            if data.startswith(b"GET /ws"):  # perhaps on a connection that served plain requests before
                self.websockets_seen += 1
                self._websockets.add(client)
                if self.refuse_websocket:
                    raise ConnectionResetError
            upstream.write(data)
            await upstream.drain()
            if data.startswith(b"POST /prompt") and self._answer_lost(client):
                await asyncio.sleep(0.2)  # until ComfyUI has queued it
                raise ConnectionResetError
        with contextlib.suppress(OSError):
            upstream.close()

    def _answer_lost(self, client: asyncio.StreamWriter) -> bool:
        lost, self.lose_answer = self.lose_answer, False
        if lost:
            self._deaf.add(client)
        return lost

    async def _pump_back(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.mute and client in self._websockets and b"HTTP/1.1 101" not in data:
                self._deaf.add(client)
            if client not in self._deaf:
                client.write(data)
                await client.drain()
        client.close()
