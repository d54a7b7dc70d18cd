"""Official templates that their authors made apps: what they would take and give as endpoints.

The files come from the package index, and their models from nowhere: they are read, described and bound, not run. What
the editor makes of them is the front end's own. The pinned ComfyUI lacks ten of their nodes; ``newer_nodes.json`` has
the types of those, as ComfyUI 0.33 gives them.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from neurolux.publishing.saving import publish

from bridge.modes.library import ModeLibrary
from bridge.modes.schema import request_schema
from tests.service.conftest import Service
from tests.service.front_ends import Editor, on_newer
from tests.wheels import Wheel

TEMPLATES = Wheel(
    "comfyui-workflow-templates-json", "0.1.50", "246a43d92fe618c5605fb00555d28e1c149008e017568999e33bb444d761bf7e"
)
NEWER_NODES = json.loads((Path(__file__).parent / "newer_nodes.json").read_text())
CONTENT = """async (workflow) => {
    await app.loadGraphData(workflow, true, false);
    const {content} = await import('/extensions/neurolux/js/publish.js');
    return content();
}"""
SIDE = {"minimum": 16, "maximum": 16384}
STRENGTH = {"minimum": -100, "maximum": 100}


class Classes:
    """The node classes of the running ComfyUI and the newer ones."""

    def __init__(self, object_info: dict[str, Any]) -> None:
        self._info = object_info | NEWER_NODES

    def definition(self, class_type: str) -> dict[str, Any] | None:
        return self._info[class_type]["input"] if class_type in self._info else None

    def title(self, class_type: str) -> str:
        return self._info.get(class_type, {}).get("display_name", class_type)

    def is_output(self, class_type: str) -> bool:
        return class_type in self._info and self._info[class_type]["output_node"]

    def knows(self, class_type: str) -> bool:
        return class_type in self._info


@dataclass(frozen=True)
class App:
    """What a template would take and give. ``fields``: the kind of each, with limits that its schema has."""

    template: str
    fields: dict[str, str | dict[str, Any]]
    results: tuple[str, ...] = ("save_image",)
    left_out: tuple[str, ...] = ()
    """Entries of the template that lead nowhere."""

    @property
    def mode(self) -> str:
        return self.template.removesuffix(".app").lower()


APPS = [
    App(
        "image_mage_flow_turbo_t2i_int8",
        {"prompt": "text", "aspect_ratio": "choice", "megapixels": {"minimum": 0.1, "maximum": 16}},
        ("save_image_advanced",),
    ),
    App(
        "image_krea2_turbo_int8_image_style_reference",
        {"reference_image": "image", "prompt": "text", "aspect_ratio": "choice", "megapixels": {"minimum": 0.1}},
    ),
    App(
        "template_contact_sheet-step_1.app",
        {
            "character_image": "image",
            "scene_image": "image",
            "product_image": "image",
            "aspect_ratio": "choice",
            "resolution": "choice",
            "prompt": "text",
        },
    ),  # fmt: skip
    App(
        "template_contact_sheet-step_3.app",
        {f"load_image_{n}": "image" for n in range(1, 8)} | {f"video{n}_seed": {"minimum": 0} for n in range(1, 8)},
        tuple(f"save_video_{node}" for node in (308, 344, 352, 360, 368, 376, 384)),
        ("'value' of node 312", "'model.resolution' of node 313", "'image' is of node 235"),
    ),
    App(
        "template_sferro21_product_ad.app",
        {"reference_image": "image", "product_shot": "image", "prompt": "text", "aspect_ratio": "choice"},
    ),
    App(
        "template_qwen_image_illustration_lora",
        {
            "text": "text",
            "width": SIDE,
            "height": SIDE,
            "strength_model": STRENGTH,
            "batch_size": {"minimum": 1, "maximum": 4096},
            "steps": {"minimum": 1, "maximum": 10000},
        },
    ),  # fmt: skip
    App(
        "template_sugar_coated_gummy_style_qwen",
        {"string_a": "text", "width": SIDE, "height": SIDE, "strength_model": STRENGTH},
    ),
    App(
        "templates_graphic_design_recomposer",
        {"image": "image", "model": "choice"},
        left_out=("'value' is of node 156", "'value' is of node 142"),
    ),
    App(
        "templates_rob_portrait_light_migration.app",
        {"load_subject_image": "image", "load_lighting_image": "image"},
        left_out=("'prompt' is of node 103",),
    ),
    App("utility_z_image_turbo_2k_upscaler.app", {"image": "image", "denoise": {"minimum": 0, "maximum": 1}}),
]
VALUES = {"text": "something else", "choice": "another", "image": "mine.png"}


@pytest.fixture(scope="module")
async def classes(front_end: Editor, service: Service) -> Classes:
    """The node classes, after the editor got to know the newer ones."""
    await front_end.page.evaluate("nodes => app.registerNodesFromDefs(nodes)", NEWER_NODES)
    answer = await front_end.page.request.get(f"{service.comfyui_url}/object_info")
    return Classes(await answer.json())


@on_newer
@pytest.mark.parametrize("app", APPS, ids=lambda app: app.mode)
async def test_an_official_app_has_a_schema_with_good_names_and_binds(
    front_end: Editor, classes: Classes, tmp_path: Path, app: App
) -> None:
    [file] = TEMPLATES.unpacked().rglob(f"{app.template}.json")
    sent = await front_end.page.evaluate(CONTENT, json.loads(file.read_bytes()))
    published = await asyncio.to_thread(
        publish, app.mode, sent["workflow"], sent["api"], classes,
        widgets=sent["widgets"], overwrite=False, folder=tmp_path,
    )  # fmt: skip
    warnings = published.interface.warnings
    assert len(warnings) == len(app.left_out)
    assert all(part in told for part, told in zip(app.left_out, warnings, strict=True))

    mode = ModeLibrary([tmp_path]).get(app.mode)
    assert list(mode.parameters) == list(app.fields)
    assert tuple(mode.result_name(node) for node in mode.results) == app.results
    schema = request_schema(mode)
    for name, expected in app.fields.items():
        kind = mode.parameters[name].kind
        if isinstance(expected, str):
            assert (name, kind) == (name, expected)
            assert (name in schema["required"]) is (expected == "image")
        else:
            assert kind in ("integer", "number"), name
            assert schema["properties"][name].items() >= expected.items()

    values = {name: VALUES.get(kind, 3) for name, kind in ((name, mode.parameters[name].kind) for name in app.fields)}
    graph, workflow = mode.bind(values)
    for name, value in values.items():
        assert {graph[node]["inputs"][key] for node, key in mode.parameters[name].targets} == {value}, name
    assert workflow != mode.workflow
