"""What a person sees in ComfyUI's editor, in a real browser: the graph opens, runs, and shows its image."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from playwright.async_api import Page

from bridge.client import ImageGenClient
from bridge.modes.library import SHIPPED_WORKFLOWS
from scripts.export_workflows import SET_VALUES, export, open_graph
from tests.service.conftest import DEFAULT_MODEL, Service
from tests.service.front_ends import Editor, on_each, on_newer, on_own
from tests.service.graph_layout import (
    MEASURE,
    NODES_2,
    WINDOW,
    app_problems,
    crowded,
    layout_problems,
    nodes_2_problems,
)

IMAGE_SIZES = """() => {
    const result = app.graph.nodes.find(node => node.type === 'NeuroLuxResult');
    return (result.imgs ?? []).filter(img => img.complete).map(img => [img.naturalWidth, img.naturalHeight]);
}"""
DROP_IMAGE = """async (encoded) => {
    const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
    await app.handleFile(new File([bytes], 'dropped.png', {type: 'image/png'}));
    await new Promise(done => setTimeout(done, 500));
    return app.graph.nodes.flatMap(node => node.widgets ?? []).map(widget => widget.value);
}"""


QUEUE = """async () => {
    const {output, workflow} = await app.graphToPrompt();
    const body = {
        prompt: output, prompt_id: crypto.randomUUID(), client_id: 'test', extra_data: {extra_pnginfo: {workflow}},
    };
    const headers = {'Content-Type': 'application/json'};
    return (await fetch('/api/prompt', {method: 'POST', headers, body: JSON.stringify(body)})).json();
}"""
HEAR_TEXTS = """() => {
    window.heardTexts = [];
    app.api.addEventListener('progress_text', event => window.heardTexts.push(event.detail.text));
}"""
MADE = """async () => {
    const history = await (await fetch('/api/history')).json();
    const done = Object.entries(history).filter(([, job]) => job.status.completed);
    return Object.fromEntries(done.map(([id, {prompt, outputs}]) => [id, {
        seed: Object.values(prompt[2]).find(node => node.class_type === 'NeuroLuxSample')?.inputs.seed,
        images: Object.values(outputs).flatMap(output => output.images ?? []).filter(image => image.type === 'output'),
    }]));
}"""
"""What each job that is done was made with and gave."""
UPLOADS = ("NeuroLuxLoadImage", "NeuroLuxFileParameter", "LoadImage")


@on_each
async def test_the_workflow_opens_from_the_templates_runs_and_shows_its_image(page: Page, service: Service) -> None:
    templates = await (await page.request.get(f"{service.comfyui_url}/api/workflow_templates")).json()
    assert templates["neurolux"][:3] == ["Text to Image", "Image to Image", "Inpaint"]
    assert len(templates["neurolux"]) == len(list(SHIPPED_WORKFLOWS.glob("*.json")))
    url = f"{service.comfyui_url}/api/workflow_templates/neurolux/Text to Image.json"
    workflow = await (await page.request.get(url)).json()
    await open_graph(page, workflow)  # Fails on a node that the editor lacks.
    await page.evaluate(
        SET_VALUES,
        {"model": DEFAULT_MODEL, "width": 160, "height": 128, "num_images": 2, "prompt": "from the editor"},
    )
    before = await page.evaluate(MADE)
    await set_batch_count(page, 2)
    await page.get_by_role("button", name="Run", exact=True).first.click()
    crowds: list[str] = []
    async with asyncio.timeout(60):
        while len(await page.evaluate(MADE)) < len(before) + 2:
            await page.wait_for_timeout(200)
            crowds += crowded(await page.evaluate(MEASURE))
    await set_batch_count(page, 1)
    await page.wait_for_function(f"() => ({IMAGE_SIZES})().length === 2", timeout=60_000)
    assert await page.evaluate(IMAGE_SIZES) == [[160, 128], [160, 128]]
    crowds += crowded(await page.evaluate(MEASURE))
    assert not crowds  # With the previews, texts and images that came.
    runs = [run for key, run in (await page.evaluate(MADE)).items() if key not in before]
    assert runs[0]["seed"] != runs[1]["seed"]
    view = f"{service.comfyui_url}/view"
    files = [await page.request.get(view, params=image) for run in runs for image in run["images"]]
    assert len({await file.body() for file in files}) == 4
    thumbnail = await page.request.get(url.replace(".json", ".jpg"))
    assert thumbnail.ok


@on_each
async def test_a_image_dropped_on_the_editor_reopens_what_made_it(page: Page, client: ImageGenClient) -> None:
    answer = client.generate("a lighthouse at dusk", width=128, height=96, num_inference_steps=2, seed=987654321)
    assert answer.image_bytes_b64
    values = await page.evaluate(DROP_IMAGE, answer.image_bytes_b64)
    assert "a lighthouse at dusk" in values
    assert 987654321 in values


@on_own
async def test_the_text_of_a_node_reaches_the_editor_that_queued_it_and_no_other(
    page: Page, service: Service, client: ImageGenClient
) -> None:
    """Another's job would write under the node of the open graph that happens to have the same id."""
    console: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    await page.evaluate(HEAR_TEXTS)
    fresh = {"unload_models": True, "free_memory": True}
    await page.request.post(f"{service.comfyui_url}/free", data=json.dumps(fresh))
    await asyncio.to_thread(client.generate, "from a program", width=64, height=64, num_inference_steps=1, seed=1)
    assert await page.evaluate("() => window.heardTexts") == []
    url = f"{service.comfyui_url}/api/workflow_templates/neurolux/text-to-image.json"
    await open_graph(page, await (await page.request.get(url)).json())
    small = {"model": DEFAULT_MODEL, "width": 64, "height": 64, "prompt": "from this editor"}
    await page.evaluate(SET_VALUES, small)
    await page.request.post(f"{service.comfyui_url}/free", data=json.dumps(fresh))
    await page.get_by_role("button", name="Run", exact=True).first.click()
    await page.wait_for_function(f"() => ({IMAGE_SIZES})().length === 1", timeout=60_000)
    assert any(f"Loaded {DEFAULT_MODEL}" in text for text in await page.evaluate("() => window.heardTexts"))
    assert not [line for line in console if "Unhandled message" in line]


@on_each
async def test_every_graph_opens_agrees_with_its_twin_and_is_taken_by_comfyui(
    page: Page, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is queued as the editor would queue it, and its run is stopped at once: other tests judge the images.

    At full size, a window of 1600 x 1000 shows all of it.
    A model, LoRA or image that is not on this machine is refused for that, and for nothing else.
    """
    wrong: list[str] = []
    before = page.viewport_size
    await page.set_viewport_size(WINDOW)
    for path in sorted(SHIPPED_WORKFLOWS.glob("*.json")):
        if not await export(page, path, check=True):
            wrong.append(capsys.readouterr().out.strip())
        wrong += await layout_problems(page, path.stem)
        answer = await page.evaluate(QUEUE)
        if "prompt_id" in answer:
            stop = json.dumps({"delete": [answer["prompt_id"]]})
            await page.request.post(f"{service.comfyui_url}/queue", data=stop)
            await page.request.post(f"{service.comfyui_url}/interrupt", data=json.dumps(answer))
        wrong += [f"{path.stem}: {problem}" for problem in unexpected(answer)]
    if before is not None:
        await page.set_viewport_size(before)
    assert not wrong, "\n".join(wrong)


@on_newer
async def test_every_graph_is_readable_in_nodes_2_and_whole_as_an_app(page: Page) -> None:
    """Nodes 2.0 has higher rows than the classic canvas, a note shows all of its text, and an app has all its fields.

    At full size, a window of 1600 x 1000 shows all of it.
    """
    before = page.viewport_size
    await page.set_viewport_size(WINDOW)
    await page.evaluate(NODES_2, True)
    try:
        wrong: list[str] = []
        for path in sorted(SHIPPED_WORKFLOWS.glob("*.json")):
            workflow = json.loads(path.read_bytes())
            await open_graph(page, workflow)
            wrong += await nodes_2_problems(page, path.stem)
            wrong += await app_problems(page, path.stem, workflow)
        assert not wrong, "\n".join(wrong)
    finally:
        await page.evaluate(NODES_2, False)
        if before is not None:
            await page.set_viewport_size(before)


async def set_batch_count(page: Page, count: int) -> None:
    """How often *Run* queues the graph."""
    field = page.locator(".batch-count input").first
    await field.click()
    await field.press("ControlOrMeta+a")
    await field.press_sequentially(str(count))
    await field.press("Tab")


def unexpected(answer: dict[str, Any]) -> list[str]:
    """What ComfyUI finds wrong with a graph, beside files that are not here. None of it stops the other outputs."""
    nodes = answer.get("node_errors") or {}
    problems = [(node["class_type"], error) for node in nodes.values() for error in node["errors"]]
    if not nodes and "prompt_id" not in answer:
        return [json.dumps(answer)]
    return [
        f"{class_type}: {error}"
        for class_type, error in problems
        if error["type"] != "value_not_in_list"
        and not (error["type"] == "custom_validation_failed" and class_type in UPLOADS)
    ]


@on_each
async def test_nothing_of_ours_is_in_the_console_of_the_browser(front_end: Editor) -> None:
    """After all that the tests above did in it."""
    assert front_end.ours() == []


@on_own
async def test_the_api_page_shows_every_endpoint(page: Page, service: Service) -> None:
    assert page.context.browser
    docs = await page.context.browser.new_page()
    failures: list[str] = []
    docs.on("pageerror", lambda error: failures.append(str(error)))
    docs.on("requestfailed", lambda request: failures.append(request.url))
    await docs.goto(f"{service.url}/docs")
    await docs.get_by_text("/v1/generate-image").first.wait_for(timeout=20_000)
    await docs.get_by_text("/v1/model-info").first.wait_for(timeout=5_000)
    await docs.close()
    assert not failures
