"""The attacks of a web page on ComfyUI, in a real Chromium: each works without the pack and fails with it."""

from __future__ import annotations

import http.server
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from playwright.async_api import Browser, Error, Page, async_playwright

from scripts.export_workflows import CHROMIUM, CHROMIUM_FLAGS, editor
from tests.pack.comfy_server import ComfyServer

EVIL = "evil.example"
"""The attacker's site, whose name the browser resolves to this machine: before a rebinding and after it."""
GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
ATTACK = """
const say = (what) => parent.postMessage(what, '*');
const [target, prompt_id, graph] = %s;
(async () => {
    const socket = new WebSocket(target.replace('http', 'ws') + '/ws?clientId=attacker');
    const opened = new Promise(done => { socket.onopen = () => done(true); socket.onerror = () => done(false); });
    const form = new FormData();
    form.append('image', new File(['x'], prompt_id + '.png'));
    await fetch(target + '/upload/image', {method: 'POST', mode: 'no-cors', body: form}).catch(() => {});
    const body = JSON.stringify({prompt: graph, prompt_id, client_id: 'attacker'});
    await fetch(target + '/prompt', {method: 'POST', mode: 'no-cors', body}).catch(() => {});
    const image = new Image();
    const seen = new Promise(done => { image.onload = () => done(true); image.onerror = () => done(false); });
    image.src = target + '/view?type=input&filename=shown.png';
    say(JSON.stringify({socket: await opened, image: await seen}));
})();
"""
SITE = """<!doctype html><title>waiting</title>
<script>onmessage = (event) => { document.title = event.data; };</script>%s"""


class Site:
    """The attacker's site: whatever page a test puts there."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = site.pages.get(self.path, "").encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://{EVIL}:{self.server.server_port}"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    found = Site()
    threading.Thread(target=found.server.serve_forever, daemon=True).start()
    yield found
    found.server.shutdown()


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    rules = f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*CHROMIUM_FLAGS, rules])
        yield opened
        await opened.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    opened = await browser.new_page()
    yield opened
    await opened.close()


@pytest.fixture(params=["bare_comfyui", "comfyui"])
def target(request: pytest.FixtureRequest) -> tuple[ComfyServer, bool]:
    """ComfyUI, and whether the guard is before it."""
    return request.getfixturevalue(request.param), request.param == "comfyui"


def put_image(comfyui: ComfyServer) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(comfyui.log.parent / "input" / "shown.png")


@pytest.mark.parametrize("sandbox", [True, False])
async def test_a_frame_of_another_site_can_do_nothing(
    page: Page, site: Site, target: tuple[ComfyServer, bool], sandbox: bool
) -> None:
    """A sandboxed frame sends `Origin: null`, which ComfyUI takes for no origin at all."""
    comfyui, guarded = target
    put_image(comfyui)
    prompt_id = str(uuid.uuid4())
    site.pages["/frame"] = "<script>" + ATTACK % json.dumps([comfyui.url, prompt_id, GRAPH]) + "</script>"
    attributes = 'sandbox="allow-scripts"' if sandbox else ""
    site.pages["/"] = SITE % f'<iframe src="/frame" {attributes}></iframe>'
    await page.goto(site.url + "/")
    await page.wait_for_function("() => document.title !== 'waiting'", timeout=20_000)
    result = json.loads(await page.title())
    attacked = sandbox and not guarded  # ComfyUI itself refuses an origin with a name
    assert result == {"socket": attacked, "image": not guarded}
    assert (comfyui.log.parent / "input" / f"{prompt_id}.png").exists() == attacked
    assert knows(comfyui, prompt_id) == attacked


def knows(comfyui: ComfyServer, prompt_id: str) -> bool:
    """Whether the graph was queued."""
    deadline = time.monotonic() + 10
    while queued := comfyui.get("/queue"):
        if not queued["queue_running"] and not queued["queue_pending"]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return prompt_id in comfyui.get(f"/history/{prompt_id}")


async def test_a_rebound_name_reads_nothing(page: Page, target: tuple[ComfyServer, bool]) -> None:
    """DNS rebinding: the attacker's name now leads to this machine, so its page has ComfyUI's own origin."""
    comfyui, guarded = target
    url = comfyui.url.replace("127.0.0.1", EVIL)
    response = await page.goto(url + "/system_stats")
    assert response is not None
    assert response.status == (403 if guarded else 200)
    statuses = await page.evaluate(
        """async () => Promise.all(['/system_stats', '/object_info/KSampler', '/internal/logs'].map(
            async path => (await fetch(path)).status))"""
    )
    assert statuses == [403 if guarded else 200] * 3
    sent = """async () => (await fetch('/upload/image', {method: 'POST', body: new FormData()})).status"""
    assert await page.evaluate(sent) == (403 if guarded else 400)
    socket = """() => new Promise(done => { const socket = new WebSocket(location.origin.replace('http', 'ws') + '/ws');
        socket.onopen = () => done(true); socket.onerror = () => done(false); })"""
    assert await page.evaluate(socket) == (not guarded)


SCRIPT = "<script>document.title = 'attacked'</script>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>document.documentElement.id = "attacked"</script></svg>'


@pytest.mark.parametrize("kind", ["userdata", "svg"])
async def test_a_stored_page_does_not_run(page: Page, target: tuple[ComfyServer, bool], kind: str) -> None:
    comfyui, guarded = target
    if kind == "userdata":
        await page.request.post(f"{comfyui.url}/userdata/evil.html", data=SCRIPT)
        url = f"{comfyui.url}/userdata/evil.html"
    else:
        (comfyui.log.parent / "input" / "evil.svg").write_text(SVG)
        url = f"{comfyui.url}/view?type=input&filename=evil.svg"
    ran = "() => document.title === 'attacked' || document.documentElement.id === 'attacked'"
    if guarded:
        async with page.expect_download() as download:
            with pytest.raises(Error, match="Download is starting"):
                await page.goto(url)
        assert (await download.value).suggested_filename.startswith("evil.")
        assert not await page.evaluate(ran)
    else:
        await page.goto(url)
        await page.wait_for_function(ran, timeout=10_000)


async def test_the_editor_cannot_be_framed_but_a_link_opens_it(page: Page, site: Site, comfyui: ComfyServer) -> None:
    site.pages["/"] = SITE % f'<iframe src="{comfyui.url}/"></iframe><a href="{comfyui.url}/">editor</a>'
    await page.goto(site.url + "/")
    frame = page.frames[1]
    assert "ComfyUI" not in await frame.content()
    await page.get_by_text("editor").click()
    await page.wait_for_url(comfyui.url + "/")
    assert await page.title() == "ComfyUI"


async def test_the_editor_itself_is_served_whole(comfyui: ComfyServer) -> None:
    """It loads, hears its websocket, keeps its style sheet, and gets no refusal."""
    refused: list[str] = []
    async with editor(comfyui.url) as page:
        await page.request.post(f"{comfyui.url}/userdata/user.css", data="body { --from-user: 1 }")
        page.on("response", lambda response: refused.append(response.url) if response.status in (403, 415) else None)
        await page.reload()
        await page.wait_for_function(
            "() => window.app?.graph && window.app.api?.socket?.readyState === 1", timeout=60_000
        )
        styled = "() => getComputedStyle(document.body).getPropertyValue('--from-user')"
        assert await page.evaluate(styled) == "1"
        queued = await page.evaluate(
            """async (graph) => (await app.api.queuePrompt(0, {output: graph, workflow: {}})).prompt_id""", GRAPH
        )
        assert comfyui.wait(queued).status == "success"
        await page.request.delete(f"{comfyui.url}/userdata/user.css")
    assert not refused
