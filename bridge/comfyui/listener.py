"""One websocket to ComfyUI, kept open: it greets, listens, and reconnects after a drop.

Every connection has its own client id. ComfyUI keeps one socket for each id, and when a client reconnects with the same
id, the old handler's `finally` unregisters the new socket (ComfyUI#16010). The price: runs sent before a drop get no
more frames, and are followed through the history instead.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable

import aiohttp
from yarl import URL

from bridge.comfyui.messages import HELLO, Frame, parse_binary, parse_text

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Previews have tens of kilobytes, but SaveImageWebsocket sends whole images, such as a large PNG."""
GREETING_TIMEOUT_S = 10.0
HEARTBEAT_S = 30.0
FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0


class Listener:
    """Passes every frame to `deliver`, and calls `changed` when the connection opens or breaks."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: URL,
        deliver: Callable[[Frame], None],
        changed: Callable[[], None],
    ) -> None:
        self._session = session
        self._url = url
        self._deliver = deliver
        self._changed = changed
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._tried = asyncio.Event()  # set: the last attempt succeeded or failed, there is nothing to wait for
        self._retry_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.connections = 0
        self.heard_at = 0.0
        """Loop time of the last frame of any kind."""
        self.client_id = str(uuid.uuid4())
        """The id to send with prompts: that of the open connection, or an unused one while there is none."""

    @property
    def connected(self) -> bool:
        return self._socket is not None and not self._socket.closed

    async def start(self) -> None:
        self._task = asyncio.create_task(self._keep_open(), name="comfyui-websocket")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def ready(self) -> bool:
        """Wait until the websocket is open and greeted, or an attempt has failed. True if it is open."""
        if not self.connected:
            if self._tried.is_set():  # the last attempt failed: make a new one now, not after the back-off
                self._tried.clear()
                self._retry_now.set()
            await self._tried.wait()
        return self.connected

    async def renew(self, client_id: str) -> None:
        """Drop the connection of this id, which delivers nothing any more. A new one follows automatically."""
        if self._socket is not None and self.client_id == client_id:
            log.info("ComfyUI's websocket is silent; opening a new one")
            await self._socket.close()

    async def _keep_open(self) -> None:
        loop = asyncio.get_running_loop()
        delay = FIRST_RETRY_S
        while True:
            began = loop.time()
            try:
                await self._listen()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                log.debug("websocket to ComfyUI failed: %s", error)
            if self._socket is not None:  # it was open: a new attempt follows, worth waiting for
                self._socket = None
                self._tried.clear()
                self.client_id = str(uuid.uuid4())
                if loop.time() - began > LAST_RETRY_S:
                    delay = FIRST_RETRY_S
                self._changed()
            else:
                self._tried.set()
            try:
                async with asyncio.timeout(delay):
                    await self._retry_now.wait()
            except TimeoutError:
                delay = min(delay * 2, LAST_RETRY_S)
            self._retry_now.clear()

    async def _listen(self) -> None:
        client_id = str(uuid.uuid4())
        async with self._session.ws_connect(
            self._url.with_query(clientId=client_id),
            max_msg_size=MAX_FRAME_BYTES,
            heartbeat=HEARTBEAT_S,
            timeout=aiohttp.ClientWSTimeout(ws_receive=None, ws_close=2.0),  # pyright: ignore[reportCallIssue]
        ) as socket:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                await socket.send_str(HELLO)
                # ComfyUI registers the id, then sends its status: the first frame proves that frames arrive
                greeting = await socket.receive()
            if greeting.type is not aiohttp.WSMsgType.TEXT:
                raise aiohttp.ClientConnectionError(f"no greeting but {greeting.type.name}")
            self._socket = socket
            self.connections += 1
            self.client_id = client_id
            self._tried.set()
            self._changed()
            clock = asyncio.get_running_loop().time
            async for message in socket:
                self.heard_at = clock()
                if message.type is aiohttp.WSMsgType.TEXT:
                    frame = parse_text(message.data)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    frame = parse_binary(message.data)
                else:
                    continue
                if frame is not None:
                    self._deliver(frame)
