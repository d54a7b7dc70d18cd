"""The overlay as a person uses it: a real window under Xvfb, seen and moved through AT-SPI, on the starter model."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import nats
from PIL import Image

from bridge.names import Names
from bridge.service.runtime import running_service
from tests.overlay.conftest import OwnService, RunningOverlay
from tests.overlay.desktop import eventually

BAR = "Describe an image"


def open_dialog(overlay: RunningOverlay) -> None:
    """As the shortcut and the 🎨 button do."""
    overlay.call("--toggle")
    overlay.person.press("Generate an image")
    overlay.person.find("Generate", "push button")


def test_a_second_process_toggles_the_bar_of_the_first(overlay: RunningOverlay) -> None:
    person = overlay.person
    assert person.see(BAR) is None
    overlay.call("--toggle")
    person.find(BAR, "text")
    overlay.call("--toggle")
    eventually(lambda: person.see(BAR) is None, "the bar is hidden again")


def test_a_prompt_becomes_an_image_that_is_saved_with_its_seed(
    overlay: RunningOverlay, own_service: OwnService
) -> None:
    person = overlay.person
    open_dialog(overlay)
    person.write("Prompt", "red apple, blue background")
    choose_slow_settings(overlay)
    person.press("Generate", timeout_s=60)
    person.find("Progress", "progress bar")
    person.press("Save", timeout_s=60)
    saved = eventually(lambda: list(overlay.images.rglob("*.png")), "a saved image")[0]
    assert saved.name.startswith("red-apple-blue-background-starter-")
    with Image.open(saved) as image:
        graph: dict[str, Any] = json.loads(image.info["prompt"])
        red, green, blue = image.convert("RGB").resize((1, 1), box=(0, 0, 8, 8)).getpixel((0, 0))  # type: ignore[misc]
    assert blue > red
    seeds = [node["inputs"]["seed"] for node in graph.values() if node["class_type"] == "NeuroLuxSample"]
    assert seeds == [int(saved.stem.rsplit("-", 1)[1])]
    person.press("Save")
    eventually(lambda: len(list(overlay.images.rglob("*.png"))) == 2, "a second file rather than an overwritten one")


def test_cancel_stops_the_job_at_the_bridge(overlay: RunningOverlay, own_service: OwnService) -> None:
    person = overlay.person
    open_dialog(overlay)
    person.write("Prompt", "a slow cat")
    choose_slow_settings(overlay)
    person.press("Generate")
    person.press("Cancel")
    eventually(lambda: person.see("Cancelled", "label"), "the card says that it was cancelled")
    with own_service.client() as client:
        newest = next(client.jobs())
    assert (newest.parameters["prompt"], newest.status) == ("a slow cat", "cancelled")


def test_a_service_that_dies_in_mid_job_is_waited_for_and_the_image_arrives(
    overlay: RunningOverlay, own_service: OwnService
) -> None:
    person = overlay.person
    open_dialog(overlay)
    person.write("Prompt", "yellow star, black background")
    choose_slow_settings(overlay)
    person.press("Generate")
    person.find("Cancel", "push button")
    own_service.kill()
    person.find("The image service is not running", "label")
    person.find("Start", "push button")
    own_service.start()
    eventually(lambda: person.see("The image service", "label") is None, "the banner goes away", 60)
    person.find("Save", "push button", timeout_s=120)


def test_past_images_are_there_after_a_restart_and_a_deleted_one_can_be_taken_back(
    overlay: RunningOverlay, own_service: OwnService
) -> None:
    with own_service.client() as client:
        client.generate("green tulip, yellow background")
    person = overlay.person
    open_dialog(overlay)
    thumbnail = person.find("green tulip, yellow background", "push button")
    assert thumbnail.get_action_iface().do_action(0)
    person.press("Delete")
    eventually(lambda: not person.see("green tulip", "push button"), "the thumbnail goes away")
    person.press("Undo")
    person.find("green tulip, yellow background", "push button")


async def forget_images(service: OwnService) -> None:
    """What the retention does after a day."""
    runtime = running_service(service.settings)
    assert runtime
    nc = await nats.connect(runtime.nats_url)
    await nc.jetstream().purge_stream(f"OBJ_{Names().images}")
    await nc.close()


async def test_a_past_image_that_is_not_kept_any_more_says_so(
    run_overlay: Callable[..., AbstractContextManager[RunningOverlay]], own_service: OwnService
) -> None:
    with own_service.client() as client:
        client.generate("white daisy, green background")
    await forget_images(own_service)
    with run_overlay() as overlay:
        person = overlay.person
        open_dialog(overlay)
        thumbnail = person.find("white daisy, green background", "push button")
        assert thumbnail.get_action_iface().do_action(0)
        person.find("Could not be fetched", "label")
        eventually(
            lambda: any("ask for it again with the same seed" in node.get_name() for node in person.all("label")),
            "what the service said",
        )
        person.find("Again", "push button")


def test_a_prompt_from_the_command_line_is_drawn_at_once(overlay: RunningOverlay) -> None:
    overlay.call("--generate", "purple heart, white background")
    overlay.person.find("purple heart, white background", "push button")
    overlay.person.find("Save", "push button", timeout_s=60)


def choose_slow_settings(overlay: RunningOverlay) -> None:
    """Fifty steps, so that there is time to act while it runs."""
    steps = overlay.person.find("Steps", "spin button")
    assert steps.get_value_iface().set_current_value(50)
