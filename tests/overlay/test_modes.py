"""The form of a mode that takes an image: it is offered on a finished one, filled with it, and sent."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
from PIL import Image, ImageChops

from tests.overlay.conftest import OwnService, RunningOverlay
from tests.overlay.desktop import eventually

MODE = "image-to-image"
GRAPH = {
    "1": {"class_type": "NeuroLuxLoadImage", "inputs": {"image": ""}},
    "2": {"class_type": "PrimitiveBoolean", "inputs": {"value": False}},
    "3": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    "9": {
        "class_type": "NeuroLuxResult",
        "inputs": {
            "images": ["3", 0],
            "name": "images",
            "output_format": "png",
            "quality": 90,
            "filename_prefix": "own",
        },
    },
}
FIELDS = [
    {"name": "image", "kind": "image", "description": "What to change.", "required": True, "targets": [["1", "image"]]},
    {
        "name": "gently",
        "kind": "boolean",
        "default": False,
        "description": "Has no effect on the colours.",
        "targets": [["2", "value"]],
    },
]


@pytest.fixture
def negative_mode(own_service: OwnService) -> Iterator[None]:
    """An image-to-image mode of the user's own, of stock nodes: it turns the colours of an image round."""
    path = own_service.settings.workflows / f"{MODE}.json"
    interface = path.parent / "api" / f"{MODE}.interface.json"
    interface.parent.mkdir(exist_ok=True)
    interface.write_text(json.dumps({"version": 1, "parameters": FIELDS}))
    path.write_text(json.dumps(GRAPH))
    yield
    path.unlink()
    interface.unlink()


def test_a_finished_image_is_varied_by_the_mode_that_takes_images(
    own_service: OwnService, negative_mode: None, overlay: RunningOverlay
) -> None:
    person = overlay.person
    overlay.call("--generate", "white heart, black background")
    person.press("Save", timeout_s=60)
    [drawn] = eventually(lambda: list(overlay.images.rglob("*.png")), "a saved image")
    person.press("Vary")
    person.find("Gently")
    eventually(lambda: person.see("Prompt", "text") is None, "the form of a mode without a prompt")
    person.press("Generate")
    with own_service.client() as client:
        newest = eventually(
            lambda: next((job for job in client.jobs(mode=MODE, status="done")), None), "the varied image", 60
        )
        with Image.open(io.BytesIO(client.job_images(newest.job_id)[0])) as varied, Image.open(drawn) as before:
            both = ImageChops.add(varied.convert("RGB"), before.convert("RGB"))
    assert both.getextrema() == ((255, 255),) * 3
