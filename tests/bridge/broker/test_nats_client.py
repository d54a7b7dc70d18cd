"""What other programs put on the wire, and errors of the server: the connection hears all that comes after."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.broker.connection import connect, respond, subscribed


def with_headers(lines: bytes) -> bytes:
    head = b"NATS/1.0" + lines + b"\r\n\r\n"
    return b"HPUB place.a %d %d\r\n%shi\r\n" % (len(head), len(head) + 2, head)


HOSTILE = {
    "a subject that is not UTF-8": b"PUB place.\xff\xfe 2\r\nhi\r\n",
    "a reply subject that is not UTF-8": b"PUB place.a \xff\xfe 2\r\nhi\r\n",
    "a payload that is not UTF-8": b"PUB place.a 2\r\n\xff\xfe\r\n",
    "a header that is not UTF-8": with_headers(b"\r\nA: \xff\xfe"),
    "a header name that is not UTF-8": with_headers(b"\r\n\xff\xfe: A"),
    "a status that is not UTF-8": with_headers(b" \xff\xfe\xff"),
    "a status with a description that is not UTF-8": with_headers(b" 503 \xff\xfe\xff"),
    "a status of another kind": with_headers(b" nonsense\r\nA: b"),
    "a header without a name": with_headers(b"\r\n: ab"),
    "a header without a colon": with_headers(b"\r\nabcd"),
    "no header lines": with_headers(b""),
    "another protocol's header line": b"HPUB place.a 8 10\r\nABCD\r\n\r\nhi\r\n",
    "empty": b"PUB place.a 0\r\n\r\n",
}


async def send_raw(url: str, data: bytes) -> bytes:
    """Send bytes to the server as a client would, and return what it answers until it has read them."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + data + b"PING\r\n")
    await writer.drain()
    answer = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    return answer


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_message_of_any_bytes_is_handed_on_and_the_next_one_too(nc: Client, nats_url: str, kind: str) -> None:
    heard: list[Msg] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg)
        await respond(nc, msg, b"answer")

    await nc.subscribe("place.*", cb=hear)
    await subscribed(nc)
    assert await send_raw(nats_url, HOSTILE[kind]) == b"PONG\r\n"
    assert (await nc.request("place.b", b"x", timeout=2)).data == b"answer"
    assert [msg.subject for msg in heard][1:] == ["place.b"]
    assert nc.stats["reconnects"] == 0


async def test_a_header_that_is_not_utf8_is_seen_as_such(nc: Client, nats_url: str) -> None:
    heard = await nc.subscribe("place.*")
    await subscribed(nc)
    await send_raw(nats_url, with_headers(b"\r\nIdempotency-Key: k\xff\xfe\r\nB: c"))
    assert (await heard.next_msg(2)).headers == {"Idempotency-Key": "k\ufffd\ufffd", "B": "c"}


async def test_a_reply_does_not_send_the_headers_of_its_request_back(nc: Client) -> None:
    async def answer(msg: Msg) -> None:
        await respond(nc, msg, b"answer")

    await nc.subscribe("place.c", cb=answer)
    request = await nc.request("place.c", b"", timeout=2, headers={f"H{n}": "x" * 9000 for n in range(100)})
    assert request.headers is None


async def test_an_error_of_the_server_is_survived(nats_url: str) -> None:
    nc = await connect(nats_url, "test")
    heard = asyncio.Queue[bytes]()

    async def hear(msg: Msg) -> None:
        await heard.put(msg.data)

    await nc.subscribe("place.d", cb=hear)
    assert nc._transport is not None
    nc._transport.write(b"NONSENSE\r\n")  # The server answers with -ERR and hangs up.
    deadline = time.monotonic() + 10
    while not nc.stats["reconnects"] and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert not nc.is_closed
    await nc.flush()
    await nc.publish("place.d", b"again")
    assert await asyncio.wait_for(heard.get(), 5) == b"again"
    await nc.close()


async def test_a_subject_longer_than_a_line_of_the_protocol_is_not_sent(nc: Client) -> None:
    with pytest.raises(Exception, match="subject"):
        await nc.publish("a" * 5000, b"")
    await nc.flush()
    assert nc.stats["reconnects"] == 0
