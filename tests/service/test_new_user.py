"""The walk of somebody who opens the editor for the first time: from the template browser to an image."""

from __future__ import annotations

from playwright.async_api import Page, expect

from tests.service.front_ends import on_each

BROWSE = "() => { app.extensionManager.command.execute('Comfy.BrowseTemplates'); }"
SHOWN = """() => {
    const result = app.graph.nodes.find(node => node.type === 'NeuroLuxResult');
    return (result?.imgs ?? []).some(image => image.complete && image.naturalWidth);
}"""
PROMPTS = """() => Object.fromEntries(app.graph.nodes
    .filter(node => node.type === 'NeuroLuxEncodePrompt').map(node => [node.title, node.widgets[0].value]))"""
"""By title: a click on a node puts it behind the others in the list."""


@on_each
async def test_three_clicks_lead_from_our_templates_to_an_image(page: Page) -> None:
    """One on the template, one into the prompt, one on Run. The model that ships with the pack needs no download."""
    await page.evaluate(BROWSE)
    await page.get_by_text("neurolux", exact=True).first.click()  # The page of our templates.
    await page.get_by_test_id("template-workflow-Text to Image").click()
    await page.wait_for_function(f"() => ({PROMPTS})().Prompt === 'red apple, blue background'", timeout=60_000)
    await page.wait_for_function("() => app.canvas.ds.scale === 1")
    prompt = page.locator("textarea.comfy-multiline-input:visible").first
    await expect(prompt).to_have_value("red apple, blue background")
    await prompt.click()
    await prompt.press("ControlOrMeta+a")
    await prompt.press_sequentially("yellow star")
    await page.get_by_role("button", name="Run", exact=True).first.click()
    await page.wait_for_function(SHOWN, timeout=120_000)
    assert await page.evaluate(PROMPTS) == {"Prompt": "yellow star", "Negative Prompt": ""}
