"""The client against a real ComfyUI: every outcome of a run, however the websocket behaves."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable

import aiohttp
import pytest
from PIL import Image

from bridge.comfyui import (
    Cached,
    ComfyUI,
    ComfyUIError,
    ComfyUIUnavailable,
    Event,
    Interrupted,
    JobLost,
    NodeDone,
    NodeFailed,
    NodeStarted,
    Preview,
    Progress,
    PromptRejected,
    Queued,
    Started,
)
from bridge.service.children.comfyui import ManagedComfyUI, free_port
from tests.bridge_process.graphs import make_image, new_id, slow
from tests.bridge_process.tcp_proxy import TcpProxy


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def started(events: list[Event]) -> None:
    """Wait until the run with these events is executing a node."""
    await until(lambda: any(isinstance(event, NodeStarted) for event in events))


async def fetch_image(client: ComfyUI, outputs: dict) -> Image.Image:
    data = await client.view(**outputs["2"]["images"][0])
    return Image.open(io.BytesIO(data))


async def test_a_run_returns_its_outputs(comfyui: ComfyUI) -> None:
    prompt_id = new_id()
    result = await comfyui.run(make_image(), prompt_id=prompt_id)
    assert result.prompt_id == prompt_id
    assert (await fetch_image(comfyui, result.outputs)).size == (32, 32)


async def test_events_come_in_order_with_progress_and_named_previews(comfyui: ComfyUI) -> None:
    events: list[Event] = []
    await comfyui.run(slow(4), prompt_id=new_id(), on_event=events.append)
    assert events[:3] == [Queued(0), Started(), NodeStarted("1")]
    assert events[-2] == NodeStarted("2")
    assert isinstance(events[-1], NodeDone)  # before the run has ended, so that its image can be fetched
    assert [event for event in events if isinstance(event, Progress)] == [Progress("1", n, 4) for n in (1, 2, 3, 4)]
    previews = [event for event in events if isinstance(event, Preview)]
    assert len(previews) == 4
    assert all(preview.node == "1" for preview in previews)
    assert Image.open(io.BytesIO(previews[0].image)).format == "JPEG"


async def test_a_cached_run_has_the_outputs_of_the_first(comfyui: ComfyUI) -> None:
    graph = make_image()
    first = await comfyui.run(graph, prompt_id=new_id())
    events: list[Event] = []
    second = await comfyui.run(graph, prompt_id=new_id(), on_event=events.append)
    assert second.outputs == first.outputs
    assert Cached(("1", "2")) in events


async def test_the_ui_graph_is_in_the_metadata_of_a_saved_image(comfyui: ComfyUI) -> None:
    workflow = {"nodes": [], "version": 0.4, "extra": {"mark": "ours"}}
    graph = make_image(save=True)
    result = await comfyui.run(graph, prompt_id=new_id(), workflow=workflow)
    image = await fetch_image(comfyui, result.outputs)
    assert json.loads(image.info["workflow"]) == workflow
    assert json.loads(image.info["prompt"])["1"]["class_type"] == "EmptyImage"


async def test_an_invalid_value_is_rejected_with_the_node_and_the_input(comfyui: ComfyUI) -> None:
    graph = make_image()
    graph["1"]["inputs"]["width"] = -5
    with pytest.raises(PromptRejected, match=r"node 1 \(EmptyImage\).*width") as caught:
        await comfyui.run(graph, prompt_id=new_id())
    assert caught.value.node_errors["1"]["errors"][0]["type"] == "value_smaller_than_min"


async def test_an_unknown_node_is_rejected(comfyui: ComfyUI) -> None:
    with pytest.raises(PromptRejected, match="NoSuchNode"):
        await comfyui.run({"1": {"class_type": "NoSuchNode", "inputs": {}}}, prompt_id=new_id())


async def test_a_partly_invalid_graph_is_rejected_and_its_valid_part_does_not_run(comfyui: ComfyUI) -> None:
    blocker_events: list[Event] = []
    blocker = asyncio.create_task(comfyui.run(slow(5), prompt_id=new_id(), on_event=blocker_events.append))
    await started(blocker_events)
    graph = make_image(save=True)
    graph["3"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "no-images"}}
    prompt_id = new_id()
    with pytest.raises(PromptRejected, match="node 3"):  # ComfyUI itself answers 200 and would run node 2
        await comfyui.run(graph, prompt_id=prompt_id)
    await blocker
    await comfyui.run(make_image(), prompt_id=new_id())
    assert await comfyui.history_entry(prompt_id) is None


async def test_a_failing_node_is_named_with_its_cause(comfyui: ComfyUI) -> None:
    with pytest.raises(NodeFailed, match="no luck today") as caught:
        await comfyui.run(slow(1, "TestFail", salt="luck"), prompt_id=new_id())
    assert (caught.value.node_id, caught.value.class_type) == ("1", "TestFail")
    assert caught.value.exception_type == "ValueError"
    assert "raise ValueError" in caught.value.traceback


async def test_a_blocked_node_does_not_fail_the_run(comfyui: ComfyUI) -> None:
    graph = slow(1, "TestBlock") | {"3": make_image()["1"]}
    graph["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    result = await comfyui.run(graph, prompt_id=new_id())  # though ComfyUI sent execution_error on the way
    assert "4" in result.outputs


async def test_a_graph_without_ui_output_has_no_outputs(comfyui: ComfyUI) -> None:
    result = await comfyui.run(slow(1, "TestBlock"), prompt_id=new_id())
    assert result.outputs == {}


async def test_cancelling_a_queued_run_leaves_the_running_one_alone(comfyui: ComfyUI) -> None:
    events: list[Event] = []
    waiting: list[Event] = []
    queued_id = new_id()
    running = asyncio.create_task(comfyui.run(slow(10), prompt_id=new_id(), on_event=events.append))
    await started(events)
    queued = asyncio.create_task(comfyui.run(make_image(), prompt_id=queued_id, on_event=waiting.append))
    await until(lambda: waiting)
    assert waiting == [Queued(1)]
    assert await comfyui.cancel(queued_id)
    with pytest.raises(Interrupted) as caught:
        await asyncio.wait_for(queued, 1)
    assert caught.value.requested
    assert (await running).outputs
    assert await comfyui.history_entry(queued_id) is None


async def test_cancelling_a_running_run_leaves_the_queued_one_alone(comfyui: ComfyUI) -> None:
    events: list[Event] = []
    running_id = new_id()
    running = asyncio.create_task(comfyui.run(slow(100), prompt_id=running_id, on_event=events.append))
    await started(events)
    queued = asyncio.create_task(comfyui.run(slow(2), prompt_id=new_id()))
    await asyncio.sleep(0.1)
    assert await comfyui.cancel(running_id)
    with pytest.raises(Interrupted) as caught:
        await asyncio.wait_for(running, 2)
    assert caught.value.requested
    assert (await queued).outputs


async def test_a_cancel_at_the_very_start_of_a_run_is_not_lost(comfyui: ComfyUI) -> None:
    for delay in (0, 0.002, 0.005, 0.01):  # ComfyUI forgets an interrupt that comes as the prompt starts
        prompt_id = new_id()
        run = asyncio.create_task(comfyui.run(slow(100), prompt_id=prompt_id))
        await asyncio.sleep(delay)
        assert await comfyui.cancel(prompt_id)
        with pytest.raises(Interrupted):
            await asyncio.wait_for(run, 3)


async def test_a_run_that_cannot_be_stopped_any_more_returns_its_result(comfyui: ComfyUI) -> None:
    events: list[Event] = []
    prompt_id = new_id()
    graph = slow(5, "TestQuiet")
    run = asyncio.create_task(comfyui.run(graph, prompt_id=prompt_id, on_event=events.append))
    await started(events)
    assert await comfyui.cancel(prompt_id)
    with pytest.raises(Interrupted):  # deaf while it works, but stopped before its next node
        await run


async def test_cancelling_what_is_done_or_unknown_says_so(comfyui: ComfyUI) -> None:
    prompt_id = new_id()
    await comfyui.run(make_image(), prompt_id=prompt_id)
    assert not await comfyui.cancel(prompt_id)
    assert not await comfyui.cancel(new_id())


async def test_an_interrupt_by_somebody_else_is_told_from_a_failure_and_from_ours(
    comfyui: ComfyUI, server: ManagedComfyUI
) -> None:
    events: list[Event] = []
    run = asyncio.create_task(comfyui.run(slow(100), prompt_id=new_id(), on_event=events.append))
    await started(events)
    async with aiohttp.ClientSession() as session, session.post(server.url + "/interrupt"):
        pass
    with pytest.raises(Interrupted) as caught:
        await asyncio.wait_for(run, 2)
    assert not caught.value.requested


async def test_a_prompt_that_somebody_deletes_is_lost_without_a_disconnect(
    comfyui: ComfyUI, server: ManagedComfyUI
) -> None:
    events: list[Event] = []
    prompt_id = new_id()
    running = asyncio.create_task(comfyui.run(slow(20), prompt_id=new_id(), on_event=events.append))
    await started(events)
    queued = asyncio.create_task(comfyui.run(make_image(), prompt_id=prompt_id))
    await asyncio.sleep(0.1)
    async with aiohttp.ClientSession() as session, session.post(server.url + "/queue", json={"delete": [prompt_id]}):
        pass
    with pytest.raises(JobLost) as caught:
        await asyncio.wait_for(queued, 4)
    assert not caught.value.disconnected
    await running


async def test_many_runs_at_once_each_get_their_own_result(comfyui: ComfyUI) -> None:
    async def one(colour: int) -> None:
        result = await comfyui.run(make_image(colour=colour), prompt_id=new_id())
        image = await fetch_image(comfyui, result.outputs)
        assert image.getpixel((0, 0)) == (colour >> 16, colour >> 8 & 255, colour & 255)

    await asyncio.gather(*(one(0x100000 + number * 257) for number in range(40)))


async def test_the_same_id_cannot_be_followed_twice(comfyui: ComfyUI) -> None:
    prompt_id = new_id()
    run = asyncio.create_task(comfyui.run(slow(3), prompt_id=prompt_id))
    await asyncio.sleep(0.05)
    with pytest.raises(ValueError, match="already"):
        await comfyui.run(make_image(), prompt_id=prompt_id)
    await run


async def test_a_run_that_another_process_sent_can_be_followed(comfyui: ComfyUI, server: ManagedComfyUI) -> None:
    prompt_id = new_id()
    async with ComfyUI(server.url) as other:
        lost = asyncio.create_task(other.run(slow(8), prompt_id=prompt_id))
        await asyncio.sleep(0.3)
        lost.cancel()
    result = await comfyui.attach(prompt_id)
    assert result.outputs["2"]["images"]
    assert (await comfyui.attach(prompt_id)).outputs == result.outputs
    with pytest.raises(JobLost):
        await comfyui.attach(new_id())


async def test_an_uploaded_image_can_be_viewed(comfyui: ComfyUI) -> None:
    data = io.BytesIO()
    Image.new("RGB", (3, 2)).save(data, "PNG")
    name = await comfyui.upload_image(data.getvalue(), "three by two.png")
    assert await comfyui.view(name, "", "input") == data.getvalue()


async def test_a_missing_file_is_named(comfyui: ComfyUI) -> None:
    with pytest.raises(ComfyUIError, match=r"no file 'gone\.png'"):
        await comfyui.view("gone.png", "", "output")


async def test_server_facts(comfyui: ComfyUI) -> None:
    assert (await comfyui.system_stats())["system"]["comfyui_version"]
    assert "EmptyImage" in await comfyui.object_info()
    await comfyui.free()


# -- when the websocket fails --------------------------------------------------------------------------------------


async def test_a_run_survives_a_dropped_websocket(server: ManagedComfyUI) -> None:
    async with TcpProxy(server.port) as proxy, ComfyUI(proxy.url) as client:
        events: list[Event] = []
        run = asyncio.create_task(client.run(slow(10), prompt_id=new_id(), on_event=events.append))
        await started(events)
        proxy.drop_websockets()
        assert (await asyncio.wait_for(run, 5)).outputs["2"]["images"]
        events.clear()
        await client.run(slow(2), prompt_id=new_id(), on_event=events.append)
        assert Progress("1", 2, 2) in events  # the new connection is heard
        assert proxy.websockets_seen == 2


async def test_a_run_survives_a_websocket_that_falls_silent_and_it_is_replaced(server: ManagedComfyUI) -> None:
    async with TcpProxy(server.port) as proxy, ComfyUI(proxy.url) as client:
        await client.run(make_image(), prompt_id=new_id())
        proxy.mute = True
        began = time.monotonic()
        assert (await client.run(make_image(), prompt_id=new_id())).outputs
        assert time.monotonic() - began < 2.5
        proxy.mute = False
        await until(lambda: proxy.websockets_seen == 2)
        events: list[Event] = []
        await client.run(slow(2), prompt_id=new_id(), on_event=events.append)
        assert Progress("1", 2, 2) in events


async def test_a_run_needs_no_websocket(server: ManagedComfyUI) -> None:
    async with TcpProxy(server.port) as proxy:
        proxy.refuse_websocket = True
        async with ComfyUI(proxy.url) as client:
            graph = make_image()
            first = await client.run(graph, prompt_id=new_id())
            assert (await client.run(graph, prompt_id=new_id())).outputs == first.outputs
            with pytest.raises(NodeFailed):
                await client.run(slow(1, "TestFail"), prompt_id=new_id())


async def test_a_prompt_whose_answer_is_lost_runs_once(server: ManagedComfyUI) -> None:
    async with TcpProxy(server.port) as proxy, ComfyUI(proxy.url) as client:
        await client.run(make_image(), prompt_id=new_id())
        before = len(await client.get_json("/history"))
        prompt_id = new_id()
        proxy.lose_answer = True
        assert (await client.run(slow(5), prompt_id=prompt_id)).outputs
        assert len(await client.get_json("/history")) == before + 1


# -- when ComfyUI fails --------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_reported_at_once() -> None:
    began = time.monotonic()
    async with ComfyUI(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(ComfyUIUnavailable, match="does not answer at"):
            await client.run(make_image(), prompt_id=new_id())
    assert time.monotonic() - began < 2


async def test_a_server_that_goes_away_for_good_ends_the_run(server: ManagedComfyUI) -> None:
    async with TcpProxy(server.port) as proxy:
        client = ComfyUI(proxy.url, unreachable_timeout_s=0.5)
        async with client:
            events: list[Event] = []
            run = asyncio.create_task(client.run(slow(10), prompt_id=new_id(), on_event=events.append))
            await started(events)
            await proxy.__aexit__(None, None, None)
            with pytest.raises(ComfyUIUnavailable):
                await asyncio.wait_for(run, 8)


async def test_a_run_is_lost_with_a_killed_comfyui_and_the_client_goes_on_with_the_next(
    server: ManagedComfyUI, comfyui: ComfyUI
) -> None:
    events: list[Event] = []
    run = asyncio.create_task(comfyui.run(slow(600), prompt_id=new_id(), on_event=events.append))
    await started(events)
    server.child.kill()
    await server.wait()
    await server.start()
    await server.wait_ready()
    with pytest.raises(JobLost) as caught:
        await asyncio.wait_for(run, 10)
    assert caught.value.disconnected
    events.clear()
    assert (await comfyui.run(slow(2), prompt_id=new_id(), on_event=events.append)).outputs
    assert Progress("1", 2, 2) in events
