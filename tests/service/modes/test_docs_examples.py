"""The pages about modes are true: every example runs as it is written, and every field and default is the mode's own.

Two things in an example are replaced: the address of the service, and what would have to be downloaded (`SUBSTITUTES`).
Each runs in a folder of its own that holds the files it reads, and what it writes has to open as what its name says.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image, ImageDraw

from bridge.client import ImageGenClient
from bridge.modes.schema import SHARED_FIELDS
from tests import tiny_adapters
from tests.service.conftest import Service
from tests.tiny_models import tiny_motion_adapter
from tests.tiny_preprocessors import write_preprocessors

ROOT = Path(__file__).parents[3]
MODE_PAGES = sorted((ROOT / "docs" / "modes").glob("*.md"))
PAGES = [*MODE_PAGES, ROOT / "docs" / "MODES.md", ROOT / "docs" / "IMAGE_GENERATION.md", ROOT / "README.md"]
SUBSTITUTES = {
    "flux-schnell": "tiny-flux-schnell",
    "flux-dev": "tiny-flux-dev",
    "flux-kontext-dev": "tiny-flux-kontext",
    "sdxl-lightning": "tiny-sdxl-lightning",
    "sd15": "tiny-sd15",
    "animatediff-lightning-4": "docs-motion",
}
"""What would have to be downloaded, and what stands for it here: the same classes with a few thousand random values."""
LORAS = ("watercolour", "sharp", "people/ada")
"""Files of a user's own, for flux-dev."""
OWN_MODE: dict[str, Any] = {
    "1": {
        "class_type": "NeuroLuxIntegerParameter",
        "inputs": {"name": "color", "value": 0, "minimum": 0, "maximum": 0xFFFFFF, "step": 1, "description": ""},
    },
    "2": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 24, "batch_size": 1, "color": ["1", 0]}},
    "3": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
    "4": {
        "class_type": "NeuroLuxResult",
        "inputs": {
            "images": ["3", 0], "name": "negative", "output_format": "png", "quality": 90, "filename_prefix": "own"
        },
    },
}  # fmt: skip
"""The graph that docs/MODES.md publishes as my-negative."""

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SET_UP = re.compile(r"^(make|git|python scripts/|\. \.venv|imagegen (up|overlay)).*\n", re.MULTILINE)
"""Lines that are not about a running service: what they set up is there, or is tested elsewhere."""
WRITTEN = re.compile(r"""open\("([\w.-]+)", "wb"\)|Path\("([\w.-]+)"\)\.write_bytes|-o ([\w.-]+)""")
LITERAL = re.compile(r"`([^`]*)`|(-?\d+(?:\.\d+)?)")
CURLRC = 'write-out = "%{stderr}curl said %{http_code}\\n"\n'


@dataclass(frozen=True)
class Example:
    """A fenced block of a page. `line` is where it begins."""

    line: int
    language: str
    text: str


def examples(page: Path) -> list[Example]:
    """What of a page needs nothing but the running service."""
    found = []
    content = page.read_text()
    for fence in FENCE.finditer(content):
        text = textwrap.dedent(fence[3])
        if fence[2] in ("bash", "sh", ""):
            text = SET_UP.sub("", text)
            if not re.search(r"^\s*(curl|imagegen)\b", text, re.MULTILINE):
                continue
        elif fence[2] != "python":
            continue
        found.append(Example(content[: fence.start()].count("\n") + 1, fence[2], text))
    return found


def here(text: str, service: Service) -> str:
    """An example with this service's address, and with models that are here."""
    text = text.replace("http://127.0.0.1:8005", service.url).replace("nats://127.0.0.1:4222", service.nats_url)
    text = text.replace("ImageGenClient()", f'ImageGenClient("{service.url}")')
    names = "|".join(map(re.escape, SUBSTITUTES))
    return re.sub(rf"(?<![\w-])({names})(?![\w-])", lambda name: SUBSTITUTES[name[1]], text)


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


def drawing(size: tuple[int, int], colour: str, ground: str) -> Image.Image:
    """A disc, a little to the left of the middle."""
    image = Image.new("RGB", size, ground)
    width, height = size
    ImageDraw.Draw(image).ellipse((width // 6, height // 6, width * 2 // 3, height * 5 // 6), fill=colour)
    return image


def zorbs() -> bytes:
    """Four training images, one of them with a caption."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for number, colour in enumerate(("magenta", "purple", "hotpink", "violet")):
            archive.writestr(f"zorb_{number}.png", encoded(drawing((128, 128), colour, "white")))
        archive.writestr("zorb_0.txt", "zorb, white background")
    return data.getvalue()


INPUTS: dict[str, bytes] = {
    "apple.png": encoded(drawing((128, 128), "red", "skyblue")),
    "half-house.png": encoded(drawing((64, 128), "brown", "skyblue")),
    "mask.png": encoded(drawing((128, 128), "white", "black")),
    "photo.jpg": encoded(drawing((300, 200), "green", "white"), "jpeg"),
    "cat.jpg": encoded(drawing((200, 240), "black", "white"), "jpeg"),
    "room.jpg": encoded(drawing((320, 240), "grey", "black"), "jpeg"),
    "dancer.jpg": encoded(drawing((160, 240), "pink", "black"), "jpeg"),
    "prompts.txt": b"red apple, blue background\n\nyellow star, purple background\n",
    "zorbs.zip": zorbs(),
}
"""The files that the examples read."""


@pytest.fixture(scope="module", autouse=True)
def what_the_examples_need(service: Service) -> Iterator[None]:
    """Adapters of the tiny models and a published graph; all of it, and what the examples trained, goes again."""
    models, workflows = service.settings.models, service.settings.workflows
    loras, motion = models / "loras", models / "animatediff_models" / SUBSTITUTES["animatediff-lightning-4"]
    own = {path.name: path for path in (models / "controlnet").glob("*")}
    write_preprocessors(models / "preprocessors")
    controlnets = [
        path for name, path in tiny_adapters.write_controlnets(models / "controlnet").items() if name not in own
    ]
    tiny_motion_adapter(seed=9, frames=16).save_pretrained(motion)
    for seed, name in enumerate(LORAS):
        (loras / name).parent.mkdir(parents=True, exist_ok=True)
        tiny_adapters.write_peft(loras / f"{name}.safetensors", models / "diffusers" / "tiny-flux-dev", seed=seed)
    (workflows / "my-negative.json").write_text(json.dumps(OWN_MODE))
    yield
    for folder in (*controlnets, motion, loras / "people"):
        shutil.rmtree(folder)
    for file in (loras / "watercolour.safetensors", loras / "sharp.safetensors", *loras.glob("zorb*.safetensors")):
        file.unlink()
    (workflows / "my-negative.json").unlink()


def run(example: Example, service: Service, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an example in `folder`, as a person would who has the project's commands on the path."""
    text = here(example.text, service)
    for name, data in INPUTS.items():
        if name in text:
            (folder / name).write_bytes(data)
    curlrc = folder.with_suffix(".curl")
    curlrc.mkdir()
    (curlrc / ".curlrc").write_text(CURLRC)
    settings = {
        "CURL_HOME": str(curlrc),
        "IMAGEGEN_STATE_DIR": str(service.settings.state_dir),
        "NO_PROXY": "127.0.0.1",
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, **settings, "PATH": path, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c"] if example.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    return subprocess.run(
        [*command, text], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def check_opens(path: Path) -> None:
    """Fail unless a file is what its extension says."""
    kind = path.suffix.lower()
    if kind in (".png", ".jpg", ".webp"):
        with Image.open(path) as image:
            assert image.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[kind], path.name
            image.load()
    elif kind == ".mp4":
        with av.open(str(path)) as film:
            assert len(list(film.decode(film.streams.video[0]))) > 1, path.name
    elif kind == ".safetensors":
        data = path.read_bytes()
        assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]), path.name
    else:
        assert kind == ".json", path.name
        assert json.loads(path.read_bytes())["images"], path.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_do_what_it_says(page: Path, service: Service, tmp_path: Path) -> None:
    found = examples(page)
    assert found
    assert page not in MODE_PAGES or {example.language for example in found} == {"bash", "python"}
    for example in found:
        folder = tmp_path / str(example.line)
        folder.mkdir()
        done = run(example, service, folder)
        told = f"{page.name}:{example.line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, told
        statuses = re.findall(r"^curl said (\d+)$", done.stderr, re.MULTILINE)
        assert len(statuses) == len(re.findall(r"\bcurl\b", example.text)), told
        assert set(statuses) <= {"200", "202"}, told
        written = [path for path in folder.rglob("*.*") if path.name not in INPUTS]
        assert written or (page not in MODE_PAGES and done.stdout.strip()), f"it shows no result\n{told}"
        for path in written:
            check_opens(path)
        for names in WRITTEN.findall(example.text):
            assert (folder / next(filter(None, names))).exists(), told


def documented(page: Path) -> Iterator[tuple[str, str | None]]:
    """Each field of a page's table with its default; None where that is said in words."""
    table = re.search(r"^\| field \|.*?\n\n", page.read_text(), re.MULTILINE | re.DOTALL)
    assert table, f"{page.name} has no table of fields"
    for row in table[0].strip().splitlines()[2:]:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        names = re.findall(r"`(\w+)`", cells[0])
        default = cells[2] if len(cells) > 2 else ""
        literals = [code or number for code, number in LITERAL.findall(default)]
        in_words = LITERAL.sub("", default).replace("and", "").strip(", ") or len(literals) != len(names)
        yield from ((name, None if in_words else literals[index]) for index, name in enumerate(names))


@pytest.mark.parametrize("page", MODE_PAGES, ids=lambda page: page.name)
def test_the_fields_of_a_page_are_those_of_the_mode(page: Path, client: ImageGenClient) -> None:
    properties = client.mode(page.stem)["properties"]
    told = dict(documented(page))
    assert set(told) == set(properties) - {"mode", *SHARED_FIELDS}
    wrong = {
        name: (default, properties[name].get("default"))
        for name, default in told.items()
        if default is not None and not same(default, properties[name].get("default"))
    }
    assert not wrong, f"{page.name} says, and the mode has: {wrong}"


def same(told: str, default: Any) -> bool:
    """Whether a default is written as `told`."""
    if isinstance(default, int | float) and not isinstance(default, bool):
        return float(told) == default
    return told == (default if isinstance(default, str) else json.dumps(default))
