"""The pack's graphs in ComfyUI's template browser: with titles, the most used first.

The browser shows a pack's templates by the names of their files, in the order of the folder. The names of ours are
parts of URLs, such as ``text-to-image``, so both are put right here: in the list, and where the browser asks for a file
by its title.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Handler

LIST_PATHS = ("/workflow_templates", "/api/workflow_templates")
FILES_PATH = "/api/workflow_templates/"
GRAPHS = Path(__file__).parents[1] / "example_workflows"
TITLES = {
    "text-to-image": "Text to Image",
    "image-to-image": "Image to Image",
    "inpaint": "Inpaint",
    "outpaint": "Outpaint",
    "edit": "Edit by Instruction",
    "upscale": "Upscale",
    "lora": "Text to Image with LoRA",
    "controlnet-canny": "ControlNet Canny Edges",
    "controlnet-depth": "ControlNet Depth",
    "controlnet-pose": "ControlNet Pose",
    "video": "Video",
    "batch": "Batch of Prompts",
    "grid": "Grid of Settings",
    "train-lora": "Train a LoRA",
}
"""By the file's name, in the order in which the browser shows them."""
_NAMES = {title: name for name, title in TITLES.items()}


@web.middleware
async def titled_templates(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the browser our templates by their titles; leave those of other packs as they are."""
    if request.method == "GET" and request.path.startswith(FILES_PATH):
        module, _, file = request.path.removeprefix(FILES_PATH).partition("/")
        title, _, suffix = file.rpartition(".")
        if module in own_modules() and title in _NAMES:
            raise web.HTTPFound(quote(f"{FILES_PATH}{module}/{_NAMES[title]}.{suffix}"))
    answer = await handler(request)
    if request.path in LIST_PATHS and isinstance(answer, web.Response) and answer.status == 200 and answer.text:
        return web.json_response(with_titles(json.loads(answer.text)))
    return answer


def own_modules() -> set[str]:
    """The names under which ComfyUI lists this pack: its folder's, or the repository's if that is installed whole."""
    pack = GRAPHS.parent
    return {pack.name, pack.parents[1].name}


def with_titles(templates: dict[str, Any]) -> dict[str, Any]:
    """``templates`` by pack, ours with their titles and in their order."""
    return {
        module: [title for name, title in TITLES.items() if name in names] if module in own_modules() else names
        for module, names in templates.items()
    }
