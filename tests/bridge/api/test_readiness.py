"""`/readyz` says whether a request would run now: what it takes is asked, not assumed."""

from __future__ import annotations

from nats.js.api import StreamConfig

from bridge.api.http.replies import GENERATION, PROBE
from bridge.broker.probe import StoreProbe, writes_of
from bridge.names import Names
from tests.bridge.house import House


async def test_a_gateway_whose_connection_was_closed_is_not_ready(house: House) -> None:
    gateway = await house.gateway()
    assert (await gateway.get("/readyz")).status == 200
    assert gateway.app is not None
    await gateway.app[GENERATION].queue.nc.close()
    answer = await gateway.get("/readyz")
    assert answer.status == 503
    assert "connection to the NATS server" in (await answer.json())["error"]["message"]
    assert answer.headers["Retry-After"]


async def test_a_stream_that_takes_no_message_is_named(house: House) -> None:
    gateway = await house.gateway()
    assert gateway.app is not None
    js, names = house.nc.jetstream(), Names(house.prefix)
    for write in writes_of(names):
        info = await js.stream_info(write.stream)
        # A sealed stream answers every question and refuses every write.
        await js.update_stream(StreamConfig(**{**info.config.__dict__, "sealed": True}))
        gateway.app[PROBE]._queues_at = -1e9
        gateway.app[PROBE]._asked_at = -1e9
        answer = await gateway.get("/readyz")
        assert answer.status == 503
        assert write.stream in (await answer.json())["error"]["message"]
        await js.delete_stream(write.stream)


async def test_questions_at_the_same_time_share_one_probe(house: House) -> None:
    gateway = await house.gateway()
    assert gateway.app is not None
    names = Names(house.prefix)
    stream = writes_of(names)[0].stream
    before = (await house.nc.jetstream().stream_info(stream)).state.last_seq
    for _ in range(10):
        assert (await gateway.get("/readyz")).status == 200
    after = (await house.nc.jetstream().stream_info(stream)).state.last_seq
    assert after - before <= 3
    assert isinstance(gateway.app[PROBE], StoreProbe)
