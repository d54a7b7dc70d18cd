"""What our part of the NATS client promises, seen from the server's end of the connection."""

from __future__ import annotations

import asyncio
import json

from nats.aio.msg import Msg

from bridge.broker.connection import connect, subscribed

INFO = {"server_id": "test", "version": "2.11.0", "proto": 1, "max_payload": 2**20, "headers": True}


async def ignore(_: Msg) -> None:
    pass


async def test_the_server_knows_of_subscriptions_before_it_answers_the_last_ping() -> None:
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"INFO {json.dumps(INFO)}\r\n".encode())
        async for line in reader:
            heard.append(line.split()[0].decode())
            if heard[-1] == "PING":
                writer.write(b"PONG\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1")
    nc = await connect(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", "test")
    try:
        for subject in ("a", "b"):
            await nc.subscribe(subject, cb=ignore)
        await subscribed(nc)
        assert heard.count("SUB") == 2
        assert heard[-1] == "PING"
    finally:
        await nc.close()
        server.close()
