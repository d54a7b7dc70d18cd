"""The advisories of ComfyUI before 0.28.0, tried on the real one: each works without the pack, and fails with it."""

from __future__ import annotations

import http.client
import json
import urllib.parse
import uuid
from dataclasses import dataclass

import pytest

from tests.pack.comfy_server import ComfyServer

SCRIPT = b"<script>document.title = 'attacked'</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>document.title="attacked"</script></svg>'


@dataclass(frozen=True)
class Answer:
    """One answer of ComfyUI."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get_content_type()

    @property
    def shown_as_page(self) -> bool:
        """Whether a browser that opens the address would run a script in the file."""
        download = (self.headers["Content-Disposition"] or "").startswith("attachment")
        sniffed = "nosniff" not in (self.headers["X-Content-Type-Options"] or "")
        inert = self.content_type.startswith(
            ("image/", "audio/", "video/", "application/json", "text/plain", "text/css")
        )
        return not download and (self.content_type == "image/svg+xml" or not inert or sniffed)


def ask(
    comfyui: ComfyServer, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Answer:
    """One request whose path is sent as it is: urllib would normalize it."""
    connection = http.client.HTTPConnection(comfyui.url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def upload(comfyui: ComfyServer, name: str, content: bytes, folder: str = "input") -> None:
    """Upload through /upload/image, as any page or program can."""
    border = uuid.uuid4().hex
    parts = [
        f'--{border}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in {"type": folder, "overwrite": "true"}.items()
    ]
    file = f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
    body = b"".join([*parts, file, content, f"\r\n--{border}--\r\n".encode()])
    answer = ask(comfyui, "POST", "/upload/image", body, {"Content-Type": f"multipart/form-data; boundary={border}"})
    assert answer.status == 200, answer


PAGES = ["evil.html", "evil.htm", "evil.xhtml", "evil.xht", "evil.svg", "evil.SVG", "evil.xml", "evil.xsl", "EVIL.HTML"]
FILES = [
    *PAGES,
    "evil.svgz",
    "evil.shtml",
    "evil.mht",
    "evil.js",
    "evil.mjs",
    "evil.pdf",
    "evil.swf",
    "evil",
    "evil.what",
]


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("name", FILES)
def test_a_stored_page_is_never_shown_by_userdata(comfyui: ComfyServer, name: str, prefix: str) -> None:
    """GHSA-53g8-45wq-pcv8."""
    path = f"{prefix}/userdata/{name}"
    assert ask(comfyui, "POST", path, SCRIPT).status == 200
    answer = ask(comfyui, "GET", path)
    assert answer.status == 200
    assert answer.body == SCRIPT, "the file itself is untouched"
    assert not answer.shown_as_page, answer.headers
    assert answer.content_type == "application/octet-stream"
    assert "sandbox" in answer.headers["Content-Security-Policy"]


def test_a_stored_page_that_is_renamed_or_in_a_folder_is_never_shown(comfyui: ComfyServer) -> None:
    ask(comfyui, "POST", "/userdata/notes.txt", SCRIPT)
    moved = ask(comfyui, "POST", "/userdata/notes.txt/move/deep%2Fevil.html")
    assert moved.status == 200, moved
    for path in ("/userdata/deep%2Fevil.html", "/api/userdata/deep%2Fevil.html", "/userdata/deep%252Fevil.html"):
        answer = ask(comfyui, "GET", path)
        assert (answer.status, answer.body) == (200, SCRIPT)
        assert not answer.shown_as_page, path


def test_the_editors_own_files_keep_their_types(comfyui: ComfyServer) -> None:
    for name, kind in {"user.css": "text/css", "comfy.settings.json": "application/json", "a.png": "image/png"}.items():
        ask(comfyui, "POST", f"/userdata/{name}", b"{}")
        answer = ask(comfyui, "GET", f"/api/userdata/{name}")
        assert (answer.content_type, answer.headers["Content-Disposition"]) == (kind, None)
        ask(comfyui, "DELETE", f"/userdata/{name}")


@pytest.mark.parametrize("folder", ["input", "output", "temp"])
@pytest.mark.parametrize("path", ["/view", "/api/view"])
@pytest.mark.parametrize("name", FILES)
def test_an_uploaded_file_is_never_shown_as_a_page_by_view(
    comfyui: ComfyServer, name: str, path: str, folder: str
) -> None:
    """GHSA-rj8c-c4p8-3c5h, and the same for every other type that can run a script."""
    upload(comfyui, name, SVG, folder)
    forms = [
        f"?filename={name}&type={folder}",
        f"?filename={name}%20[{folder}]",
        f"?type={folder}&filename={name}&preview=",
    ]
    for query in forms[:2]:
        answer = ask(comfyui, "GET", path + query)
        assert (answer.status, answer.body) == (200, SVG)
        assert not answer.shown_as_page, answer.headers
        assert name in answer.headers["Content-Disposition"], "the download has the file's name"


def test_an_svg_still_appears_in_the_editors_images(comfyui: ComfyServer) -> None:
    upload(comfyui, "drawing.svg", SVG)
    answer = ask(comfyui, "GET", "/view?filename=drawing.svg&type=input", headers={"Sec-Fetch-Dest": "image"})
    assert answer.content_type == "image/svg+xml"
    assert not answer.shown_as_page
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Vary"] == "Sec-Fetch-Dest"


def test_the_stored_pages_run_without_the_guard(bare_comfyui: ComfyServer) -> None:
    ask(bare_comfyui, "POST", "/userdata/evil.html", SCRIPT)
    assert ask(bare_comfyui, "GET", "/userdata/evil.html").shown_as_page
    upload(bare_comfyui, "evil.svg", SVG)
    assert ask(bare_comfyui, "GET", "/view?filename=evil.svg&type=input").shown_as_page


CLIMBS = [
    "../../{}.safetensors",
    "..%2F..%2F{}.safetensors",
    "%2e%2e%2f%2e%2e%2f{}.safetensors",
    "..%2f..%2f{}.png",
    "sub/..%2f..%2f..%2f{}.safetensors",
    "..%252f..%252f{}.safetensors",
    "..%5C..%5C{}.safetensors",
]


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("form", [*CLIMBS, "%2F{absolute}", "/{absolute}"])
def test_a_preview_never_comes_from_outside_the_model_folders(
    comfyui: ComfyServer, outside: str, form: str, prefix: str
) -> None:
    """GHSA-pj59-g5vv-74q4."""
    absolute = str(comfyui.log.parent / outside).lstrip("/").replace("/", "%2F") + ".safetensors"
    path = f"{prefix}/experiment/models/preview/loras/0/" + form.format(outside, absolute=absolute)
    answer = ask(comfyui, "GET", path)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "bad_name")
    assert ask(comfyui, "HEAD", path).status == 400


def test_a_preview_comes_from_anywhere_without_the_guard(bare_comfyui: ComfyServer, outside: str) -> None:
    path = f"/experiment/models/preview/loras/0/..%2F..%2F{outside}.safetensors"
    answer = ask(bare_comfyui, "GET", path)
    assert (answer.status, answer.content_type) == (200, "image/webp")


def test_previews_inside_the_folders_work(comfyui: ComfyServer, outside: str) -> None:
    base = comfyui.log.parent
    (base / "models" / "loras" / "style..v2.png").write_bytes((base / f"{outside}.png").read_bytes())
    answer = ask(comfyui, "GET", "/experiment/models/preview/loras/0/style..v2.safetensors")
    assert (answer.status, answer.content_type) == (200, "image/webp")
    (base / "models" / "loras" / "style..v2.png").unlink()


def graph(name: object, class_type: str = "LoadImage", key: str = "image") -> dict[str, object]:
    return {
        "1": {"class_type": class_type, "inputs": {key: name, "channel": "red"}},
        "2": {"class_type": "MaskPreview" if class_type == "LoadImageMask" else "PreviewImage",
              "inputs": {"mask" if class_type == "LoadImageMask" else "images": ["1", 0]}},
    }  # fmt: skip


def queue(comfyui: ComfyServer, prompt: object, path: str = "/prompt", **headers: str) -> Answer:
    body = json.dumps({"prompt": prompt, "client_id": "attacker"}).encode()
    return ask(comfyui, "POST", path, body, {"Content-Type": "application/json", **headers})


NAMES = [
    "../{}.png",
    "../{}.png [input]",
    "../{}.png [output]",
    "../{}.png [temp]",
    "imagegen/../../{}.png",
    "..\\{}.png",
    "%2e%2e%2f{}.png",
    "{absolute}.png",
    "{absolute}.png [output]",
    "../missing-{}.png",
]


@pytest.mark.parametrize("class_type", ["LoadImage", "LoadImageMask"])
@pytest.mark.parametrize("path", ["/prompt", "/api/prompt"])
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_never_loads_an_image_from_outside(
    comfyui: ComfyServer, outside: str, name: str, path: str, class_type: str
) -> None:
    """GHSA-rvxv-29p8-pxgq. Whether the file exists makes no difference, so that nothing can be probed."""
    full = name.format(outside, absolute=comfyui.log.parent / outside)
    answer = queue(comfyui, graph(full, class_type), path)
    document = json.loads(answer.body)
    assert answer.status == 400
    assert document["node_errors"]["1"]["errors"][0]["message"] == "Invalid file name"
    assert document["node_errors"]["1"]["class_type"] == class_type
    assert "leads out of its folder" in document["error"]["details"]


@pytest.mark.parametrize(
    ("class_type", "key"),
    [("LoadLatent", "latent"), ("LoadAudio", "audio"), ("LoadVideo", "file"), ("LoadImageOutput", "image")],
)
def test_no_node_that_loads_an_upload_reads_outside(
    comfyui: ComfyServer, outside: str, class_type: str, key: str
) -> None:
    assert class_type in comfyui.get("/object_info"), "the node exists"
    answer = queue(comfyui, graph(f"../{outside}.png", class_type, key))
    assert answer.status == 400
    assert json.loads(answer.body)["node_errors"]["1"]["errors"][0]["message"] == "Invalid file name"


def test_other_encodings_of_the_graph_are_seen_through(comfyui: ComfyServer, outside: str) -> None:
    text = json.dumps({"prompt": graph(f"../{outside}.png")})
    escaped = text.replace("..", "\\u002e\\u002e").encode()
    assert ask(comfyui, "POST", "/prompt", escaped, {"Content-Type": "application/json"}).status == 400
    wide = text.encode("utf-16")
    answer = ask(comfyui, "POST", "/prompt", wide, {"Content-Type": "application/json; charset=utf-16"})
    assert (answer.status, b"leads out" in answer.body) == (400, True)


def test_a_deeply_nested_value_hides_no_name(comfyui: ComfyServer, outside: str) -> None:
    for depth in (200, 400, 600, 800, 900, 950, 980):
        prompt = graph(f"../{outside}.png")
        nest = '{"a":' * depth + "1" + "}" * depth
        body = json.dumps({"prompt": {"0": {"class_type": "PreviewAny", "inputs": {"source": "NEST"}}, **prompt}})
        answer = ask(comfyui, "POST", "/prompt", body.replace('"NEST"', nest).encode())
        assert answer.status in (400, 500)
        assert not comfyui.get("/queue")["queue_pending"]


@pytest.mark.parametrize(
    ("class_type", "values", "passes"),
    [
        ("SaveImageDataSetToFolder", {"folder_name": "../climbed", "filename_prefix": "x"}, False),
        ("SaveImageDataSetToFolder", {"folder_name": "/tmp/climbed", "filename_prefix": "x"}, False),
        ("SaveImageDataSetToFolder", {"folder_name": "set", "filename_prefix": "../../climbed"}, False),
        ("SaveImageDataSetToFolder", {"folder_name": "set", "filename_prefix": "x"}, True),
        ("SaveImage", {"filename_prefix": "../climbed"}, False),
        ("SaveImage", {"filename_prefix": "{output}/deep/x"}, True),
        ("SaveImage", {"filename_prefix": "{output}/../climbed"}, False),
        ("SaveImage", {"filename_prefix": "%date:yyyy-MM-dd%/x"}, True),
    ],
)
def test_core_nodes_take_no_folder_from_outside(
    comfyui: ComfyServer, class_type: str, values: dict[str, str], passes: bool
) -> None:
    """Not in the advisories, but the same kind: some of these join a text with the output folder."""
    output = str(comfyui.log.parent / "output")
    inputs = {name: value.format(output=output) for name, value in values.items()}
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": class_type, "inputs": {"images": ["1", 0], **inputs}},
    }
    answer = queue(comfyui, prompt)
    assert (answer.status, b"leads out" in answer.body) == ((200, False) if passes else (400, True)), answer.body


def test_a_graph_loads_from_outside_without_the_guard(bare_comfyui: ComfyServer, outside: str) -> None:
    assert queue(bare_comfyui, graph(f"../{outside}.png")).status == 200
    assert queue(bare_comfyui, graph("../missing.png")).status == 400


def test_uploads_still_load(comfyui: ComfyServer, outside: str) -> None:
    upload(comfyui, "dots..in.name.png", (comfyui.log.parent / f"{outside}.png").read_bytes())
    for name in ("dots..in.name.png", "dots..in.name.png [input]"):
        answer = queue(comfyui, graph(name))
        assert answer.status == 200, answer.body
        assert comfyui.wait(json.loads(answer.body)["prompt_id"]).status == "success"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "rebind.example.invalid"},
        {"Host": "rebind.example.invalid", "Origin": "http://rebind.example.invalid"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/system_stats"),
        ("GET", "/api/system_stats"),
        ("GET", "/"),
        ("GET", "/ws?clientId=attacker"),
        ("GET", "/internal/logs"),
        ("GET", "/extensions/neurolux/js/publish.js"),
        ("GET", "/no-such-route"),
        ("POST", "/prompt"),
        ("POST", "/upload/image"),
        ("POST", "/free"),
        ("DELETE", "/userdata/x.json"),
        ("OPTIONS", "/prompt"),
        ("POST", "/neurolux/modes/evil"),
        ("GET", "/neurolux/models"),
    ],
)
def test_foreign_pages_get_nothing(comfyui: ComfyServer, method: str, path: str, headers: dict[str, str]) -> None:
    if path.startswith("/ws"):
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
        headers = {**headers, "Connection": "Upgrade", "Upgrade": "websocket", **key}
    answer = ask(comfyui, method, path, b"{}" if method == "POST" else b"", headers)
    assert answer.status == 403
    if method != "OPTIONS":
        assert json.loads(answer.body)["error"]["code"] in ("foreign_host", "foreign_origin", "cross_site")
    assert answer.headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("path", ["/neurolux/inputs/clean", "/neurolux/modes/mine"])
@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_the_packs_own_routes_demand_json(comfyui: ComfyServer, prefix: str, path: str, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = ask(comfyui, "POST", prefix + path, b"{}", headers)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (415, "not_json")


@pytest.mark.parametrize(
    "path", ["/", "/system_stats", "/view?filename=no", "/no-such-route", "/api/object_info/KSampler"]
)
def test_every_answer_has_the_protective_headers(comfyui: ComfyServer, path: str) -> None:
    headers = ask(comfyui, "GET", path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "SAMEORIGIN"
    assert headers["Referrer-Policy"] == "same-origin"


def test_local_names_and_programs_are_served(comfyui: ComfyServer) -> None:
    port = urllib.parse.urlsplit(comfyui.url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST.:{port}", f"[::1]:{port}"):
        own = {"Host": host, "Origin": f"http://{host.lower().replace('.:', ':')}", "Sec-Fetch-Site": "same-origin"}
        for headers in ({"Host": host}, own if "127" in host else {"Host": host}):
            assert ask(comfyui, "GET", "/system_stats", headers=headers).status == 200, headers
