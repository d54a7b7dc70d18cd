"""A graph of a user's own becomes an endpoint: published from the editor, or dropped into the modes folder.

The graphs have stock nodes and our boundary nodes only, so no weights are needed.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from playwright.async_api import Page, expect

from bridge.client import ClientError, ImageGenClient
from tests.service.conftest import Service
from tests.service.front_ends import on_each, on_own

ADD = """
    const add = (type, pos, values) => {
        const node = LiteGraph.createNode(type);
        node.pos = pos;
        app.graph.add(node);
        for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;
        return node;
    };"""
BUILD = """async (withResult) => {
    app.graph.clear();
    /* add */
    const link = (from, to, input) => from.connect(0, to, to.findInputSlot(input));
    add('MarkdownNote', [-400, 0], {}).widgets[0].value = '# Negative\\n\\nTurns a plain colour round.';
    const color = add('NeuroLuxIntegerParameter', [0, 0], {name: 'color', value: 255, minimum: 0, maximum: 16777215});
    const width = add('NeuroLuxIntegerParameter', [0, 300], {name: 'width', value: 32, minimum: 16, maximum: 64});
    const empty = add('EmptyImage', [400, 0], {height: 24});
    const invert = add('ImageInvert', [800, 0], {});
    link(color, empty, 'color');
    link(width, empty, 'width');
    link(empty, invert, 'image');
    const result = add(withResult ? 'NeuroLuxResult' : 'PreviewImage', [1100, 0], withResult ? {name: 'negative'} : {});
    link(invert, result, 'images');
}""".replace("/* add */", ADD)
BUILD_APP = """() => {
    app.graph.clear();
    /* add */
    const empty = add('EmptyImage', [0, 0], {width: 32, height: 24});
    const invert = add('ImageInvert', [400, 0], {});
    const noise = add('RandomNoise', [0, 300], {noise_seed: 3});
    const shown = add('PreviewImage', [800, 0], {});
    shown.title = 'Look here';
    empty.connect(0, invert, 0);
    invert.connect(0, shown, 0);
    const never = add('SaveImage', [800, 400], {filename_prefix: 'not chosen'});
    invert.connect(0, never, 0);
    empty.inputs.find(slot => slot.widget?.name === 'color').label = 'Colour';
    app.graph.extra.linearData = {
        inputs: [
            [empty.id, 'color'], [String(empty.id), 'width', {description: 'Pixels.'}], [99, 'gone'],
            [noise.id, 'noise_seed', {name: 'seed'}],
        ],
        outputs: [shown.id],
    };
}""".replace("/* add */", ADD)
INTO_SUBGRAPH = """(types) => {
    const graph = app.canvas.graph;
    const nodes = graph.nodes.filter(node => types.includes(node.type) || (types.length > 2 && node.subgraph));
    return graph.convertToSubgraph(new Set(nodes)).node.subgraph.nodes.length;
}"""
OPENED = """async (encoded) => {
    const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
    await app.handleFile(new File([bytes], 'dropped.png', {type: 'image/png'}));
    await new Promise(done => setTimeout(done, 500));
    const found = {}, depths = [];
    const walk = (graph, depth) => graph.nodes.forEach(node => {
        const value = name => node.widgets?.find(widget => widget.name === name)?.value;
        if (node.type === 'NeuroLuxIntegerParameter') {
            found[value('name')] = value('value');
            depths.push(depth);
        }
        if (node.subgraph) walk(node.subgraph, depth + 1);
    });
    walk(app.graph, 0);
    return {found, depths};
}"""
PUBLISH = "() => { app.extensionManager.command.execute('NeuroLux.PublishAsMode'); }"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def result(source: str, name: str, output_format: str = "png") -> dict[str, Any]:
    return node(
        "NeuroLuxResult",
        images=[source, 0], name=name, output_format=output_format, quality=90, filename_prefix="own",
    )  # fmt: skip


SCALER = {
    "1": node("NeuroLuxLoadImage", image=""),
    "2": node("NeuroLuxChoiceParameter", name="method", value="bilinear", choices="", description="How."),
    "3": node("PrimitiveBoolean", value=True),
    "4": node("ImageScale", image=["1", 0], upscale_method=["2", 0], width=16, height=16, crop="disabled"),
    "9": result("4", "large", "webp"),
    "10": result("1", "same"),
}
SCALER_FIELDS = [
    {"name": "image", "kind": "image", "description": "What to scale.", "required": True, "targets": [["1", "image"]]},
    {"name": "smooth", "kind": "boolean", "default": True, "targets": [["3", "value"]]},
]
FILE = {
    "1": node("NeuroLuxFileParameter", name="archive", file="", description="", required=True, accept="zip"),
    "2": node("EmptyImage", width=16, height=16, batch_size=1, color=0),
    "3": node("PreviewAny", source=["1", 0]),
    "9": result("2", "images"),
}


@pytest.fixture
def modes(service: Service) -> Iterator[Path]:
    """The user's modes folder; what a test puts there goes again."""
    before = set(service.settings.workflows.rglob("*.json"))
    yield service.settings.workflows
    for path in set(service.settings.workflows.rglob("*.json")) - before:
        path.unlink()


def make_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


async def publish_as(page: Page, name: str) -> None:
    await page.evaluate(PUBLISH)
    field = page.get_by_role("dialog").get_by_role("textbox")
    await field.fill(name)
    await field.press("Enter")
    await field.wait_for(state="detached")


async def agree(page: Page, *shown: str, button: str = "Confirm") -> None:
    """The dialog lists what the endpoint takes; press its button."""
    dialog = page.get_by_role("dialog")
    for text in shown:
        await expect(dialog).to_contain_text(text)
    await dialog.get_by_role("button", name=button).click()


@on_own
async def test_a_graph_published_from_the_editor_is_an_endpoint_at_once(
    page: Page, client: ImageGenClient, service: Service, modes: Path
) -> None:
    await page.evaluate(BUILD, True)
    await publish_as(page, "My Negative!")
    await agree(page, "color: integer", "width: integer")
    url = f"{service.url}/v1/modes/my-negative"
    await expect(page.locator(".p-toast-message-success")).to_contain_text(f"POST {url} runs this graph now")
    schema = client.mode("my-negative")
    assert (schema["title"], schema["description"]) == ("Negative", "Turns a plain colour round.")
    assert schema["properties"]["color"]["maximum"] == 16777215
    answer = client.run_mode("my-negative", color=0x102030, width=48)
    [file] = answer.files
    assert (file.result, file.media_type) == ("negative", "image/png")
    [shown] = [make_image(data) for data in client.images(answer)]
    assert (shown.size, shown.getpixel((0, 0))) == ((48, 24), (0xEF, 0xDF, 0xCF))
    saved = json.loads((modes / "my-negative.json").read_text())
    assert {"MarkdownNote", "EmptyImage"} < {each["type"] for each in saved["nodes"]}

    # Once more: it asks before it replaces, and leaves what is there when the answer is no.
    first = (modes / "api" / "my-negative.json").read_bytes()
    await page.evaluate("() => { app.graph.nodes.find(n => n.type === 'EmptyImage').widgets[1].value = 40; }")
    await publish_as(page, "my-negative")
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("mode 'my-negative' already exists")
    await page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    assert (modes / "api" / "my-negative.json").read_bytes() == first
    await publish_as(page, "my-negative")
    await agree(page, button="Overwrite")
    await expect(page.locator(".p-toast-message-success")).to_have_count(2)
    assert make_image(client.images(client.run_mode("my-negative", color=1))[0]).size == (32, 40)

    await page.evaluate("() => { app.graph.clear(); app.graph.add(LiteGraph.createNode('EmptyImage')); }")
    await publish_as(page, "endless")
    await expect(page.locator(".p-toast-message-error")).to_contain_text("no Result node and no other node that saves")
    assert not (modes / "endless.json").exists()


@on_each
async def test_a_stock_workflow_that_its_author_made_an_app_is_an_endpoint(
    page: Page, client: ImageGenClient, service: Service, modes: Path
) -> None:
    """No node of ours: inputs and output as App Mode saves them, with a label and an entry that leads nowhere."""
    await page.evaluate(BUILD_APP)
    await publish_as(page, "stock")
    await agree(page, "colour: integer", "width: integer", "seed: seed", "left out: the app's input 'gone'")
    await expect(page.locator("body")).to_contain_text("/v1/modes/stock runs this graph now")
    fields = client.mode("stock")["properties"]
    assert (fields["colour"]["minimum"], fields["colour"]["maximum"]) == (0, 0xFFFFFF)
    assert (fields["width"]["default"], fields["width"]["description"]) == (32, "Pixels.")
    answer = client.run_mode("stock", colour=0x102030, width=48, seed=5)
    [file] = answer.files
    assert file.result == "look_here"
    assert not list(service.settings.comfyui_base.glob("output/not chosen*"))  # Only the app's output ran.
    [shown] = [make_image(data) for data in client.images(answer)]
    assert (shown.size, shown.getpixel((0, 0))) == ((48, 24), (0xEF, 0xDF, 0xCF))
    assert answer.seed == 5
    with pytest.raises(ClientError, match="colour 16777216 is above the maximum of 16777215"):
        client.run_mode("stock", colour=0x1000000)


@on_own
async def test_parameters_that_the_editor_put_into_subgraphs_are_set_and_come_back(
    page: Page, client: ImageGenClient, modes: Path
) -> None:
    """One subgraph, and one in another: the image opens in the editor with the values that made it."""
    await page.evaluate(BUILD, True)
    assert await page.evaluate(INTO_SUBGRAPH, ["NeuroLuxIntegerParameter", "EmptyImage"]) == 3
    await publish_as(page, "once")
    await agree(page)
    await expect(page.locator(".p-toast-message-success").last).to_contain_text("/v1/modes/once runs this graph now")
    assert await page.evaluate(INTO_SUBGRAPH, ["ImageInvert", "", ""]) == 2
    await publish_as(page, "nested")
    await agree(page)
    await expect(page.locator(".p-toast-message-success").last).to_contain_text("/v1/modes/nested runs this graph now")
    for depth, name in ((1, "once"), (2, "nested")):
        answer = await asyncio.to_thread(client.run_mode, name, color=0x102030, width=48)
        (data,) = client.images(answer)
        made = make_image(data)
        assert (made.size, made.getpixel((0, 0))) == ((48, 24), (0xEF, 0xDF, 0xCF))
        opened = await page.evaluate(OPENED, base64.b64encode(data).decode())
        assert opened["found"] == {"color": 0x102030, "width": 48}
        assert opened["depths"] == [depth, depth]


@on_own
async def test_publishing_is_in_the_menu_and_among_the_commands(page: Page) -> None:
    """A front end that has a command palette shows there what is among the commands; this one has none yet."""
    commands = await page.evaluate("() => app.extensionManager.command.commands.map(each => [each.id, each.label])")
    assert ["NeuroLux.PublishAsMode", "Publish as mode"] in commands
    await page.locator(".comfy-menu-button-wrapper").first.click()
    await page.get_by_role("menuitem", name="File").hover()
    await page.get_by_role("menuitem", name="Publish as mode").click()
    await expect(page.get_by_role("dialog").get_by_role("textbox")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("..%2F..%2Fescape", 422, "bad_name"),
        ("%2E%2E", 422, "bad_name"),
        ("Name", 422, "bad_name"),
        ("a" * 65, 422, "bad_name"),
        ("text-to-image", 409, "exists"),
        ("empty", 422, "bad_graph"),
        ("twice", 422, "bad_parameter"),
    ],
)
def test_the_route_writes_nothing_that_it_should_not(
    service: Service, modes: Path, path: str, status: int, code: str
) -> None:
    graph: dict[str, Any] = {"1": node("EmptyImage", width=16), "9": result("1", "images")}
    if path == "empty":
        graph = {}
    if path == "twice":
        graph |= {key: node("NeuroLuxIntegerParameter", name="seed", value=1) for key in ("2", "3")}
    before = set(modes.parent.rglob("*"))
    session = requests.Session()
    request = requests.Request("POST", "http://x", json={"workflow": {"nodes": []}, "api": graph}).prepare()
    request.url = f"{service.comfyui_url}/neurolux/modes/{path}"  # As it is: requests would resolve the dots.
    answer = session.send(request, timeout=10)
    if answer.status_code != 404:  # The dots alone lead to no route.
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(modes.parent.rglob("*.json")) - before == set()
    form = requests.post(f"{service.comfyui_url}/neurolux/modes/fine", data={"a": "b"}, timeout=10)
    assert form.status_code == 415


def test_a_graph_in_api_format_dropped_into_the_folder_works_at_every_door(
    client: ImageGenClient, modes: Path, imagegen: Any, tmp_path: Path
) -> None:
    (modes / "scale.json").write_text(json.dumps(SCALER))
    (modes / "api").mkdir(exist_ok=True)
    (modes / "api" / "scale.interface.json").write_text(json.dumps({"version": 1, "parameters": SCALER_FIELDS}))
    (modes / "half.json").write_text(json.dumps({"nodes": [], "links": []}))
    schema = client.mode("scale")
    assert schema["properties"]["method"]["enum"] == ["nearest-exact", "bilinear", "area", "bicubic", "lanczos", None]
    assert schema["properties"]["smooth"]["type"] == ["boolean", "null"]
    source = tmp_path / "red.png"
    Image.new("RGB", (8, 4), (200, 10, 20)).save(source)
    answer = client.run_mode("scale", image=source, method="area")
    assert [(file.result, file.media_type) for file in answer.files] == [
        ("large", "image/webp"),
        ("same", "image/png"),
    ]
    assert [make_image(data).size for data in client.images(answer)] == [(16, 16), (8, 4)]
    saved = client.save(answer, tmp_path / "saved") + client.save(client.job(answer.job_id), tmp_path / "saved")
    assert [Image.open(path).format for path in saved] == ["WEBP", "PNG"] * 2
    assert len(set(saved)) == 4
    again = client.run_mode("scale", image=f"job:{answer.job_id}/1")
    assert [make_image(data).size for data in client.images(again)] == [(16, 16), (8, 4)]
    with pytest.raises(ClientError, match="method 'cubist' is not one of nearest-exact, bilinear"):
        client.run_mode("scale", image=source, method="cubist")
    with pytest.raises(ClientError, match=r"'half' has no exported graph: .* choose File > Publish as mode"):
        client.mode("half")
    done = imagegen("generate", "--mode", "scale", "--set", f"image=@{source}", "--set", "smooth=false", "--out", "o")
    assert done.returncode == 0, done.stderr
    assert sorted(Path(line).suffix for line in done.stdout.split()) == [".png", ".webp"]


def test_a_file_parameter_takes_a_zip_from_the_command_line(
    client: ImageGenClient, modes: Path, imagegen: Any, tmp_path: Path
) -> None:
    (modes / "unpack.json").write_text(json.dumps(FILE))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a.txt", "a red cube")
    done = imagegen("generate", "--mode", "unpack", "--set", "archive=@set.zip", "--quiet")
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / done.stdout.strip()).suffix == ".png"
    with pytest.raises(ClientError, match="archive is a txt file; send zip"):
        client.run_mode("unpack", archive=b"plain text")
