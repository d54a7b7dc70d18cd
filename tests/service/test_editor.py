"""What a person sees in ComfyUI's editor, in a real browser: the graph opens, runs, and shows its picture."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright

from bridge.client import ImageGenClient
from bridge.modes import SHIPPED_WORKFLOWS
from scripts.export_workflows import CHROMIUM, CHROMIUM_FLAGS, editor, export, open_graph
from tests.service.conftest import DEFAULT_MODEL, Service

SET_PARAMETERS = """(values) => {
    for (const node of app.graph.nodes) {
        const name = node.widgets?.find(widget => widget.name === 'name')?.value;
        if (name in values) node.widgets.find(widget => widget.name === 'value').value = values[name];
    }
}"""
PICTURE_SIZES = """() => {
    const result = app.graph.nodes.find(node => node.type === 'NeuroLuxResult');
    return (result.imgs ?? []).filter(img => img.complete).map(img => [img.naturalWidth, img.naturalHeight]);
}"""
DROP_PICTURE = """async (encoded) => {
    const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
    await app.handleFile(new File([bytes], 'dropped.png', {type: 'image/png'}));
    await new Promise(done => setTimeout(done, 500));
    return app.graph.nodes.flatMap(node => node.widgets ?? []).map(widget => widget.value);
}"""


@pytest.fixture
async def page(service: Service) -> AsyncIterator[Page]:
    async with editor(service.comfyui_url) as opened:
        yield opened


async def test_the_workflow_opens_from_the_templates_runs_and_shows_its_picture(page: Page, service: Service) -> None:
    templates = await (await page.request.get(f"{service.comfyui_url}/api/workflow_templates")).json()
    assert templates["neurolux"] == [path.stem for path in sorted(SHIPPED_WORKFLOWS.glob("*.json"))]
    url = f"{service.comfyui_url}/api/workflow_templates/neurolux/text-to-image.json"
    workflow = await (await page.request.get(url)).json()
    await open_graph(page, workflow)  # Fails on a node that the editor lacks.
    await page.evaluate(
        SET_PARAMETERS,
        {"model": DEFAULT_MODEL, "width": 160, "height": 128, "num_images": 2, "prompt": "from the editor"},
    )
    await page.get_by_role("button", name="Run", exact=True).first.click()
    await page.wait_for_function(f"() => ({PICTURE_SIZES})().length === 2", timeout=60_000)
    assert await page.evaluate(PICTURE_SIZES) == [[160, 128], [160, 128]]
    thumbnail = await page.request.get(url.replace(".json", ".jpg"))
    assert thumbnail.ok


async def test_a_picture_dropped_on_the_editor_reopens_what_made_it(page: Page, client: ImageGenClient) -> None:
    answer = client.generate("a lighthouse at dusk", width=128, height=96, num_inference_steps=2, seed=987654321)
    assert answer.image_bytes_b64
    values = await page.evaluate(DROP_PICTURE, answer.image_bytes_b64)
    assert "a lighthouse at dusk" in values
    assert 987654321 in values


@pytest.mark.parametrize("path", sorted(SHIPPED_WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
async def test_both_formats_of_a_graph_agree(page: Page, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await export(page, path, check=True), capsys.readouterr().out


async def test_the_api_page_shows_every_endpoint(service: Service) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        page = await browser.new_page()
        failures: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("requestfailed", lambda request: failures.append(request.url))
        await page.goto(f"{service.url}/docs")
        await page.get_by_text("/v1/generate-image").first.wait_for(timeout=20_000)
        await page.get_by_text("/v1/model-info").first.wait_for(timeout=5_000)
        await browser.close()
    assert not failures
