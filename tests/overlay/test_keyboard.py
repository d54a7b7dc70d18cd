"""The overlay without a mouse: what has the keyboard has a name, and keys alone reach everything."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.overlay.conftest import Desktop, OwnService, RunningOverlay
from tests.overlay.desktop import Hands, Person, eventually

BAR, WINDOW = "NeuroLux", "Generate an image"
FORM = ["Prompt", "Model", "Size", "Images", "Steps", "Guidance", "Seed", "Another seed", "Keep this seed"]
IMAGE = ["Save", "Save as", "Copy", "Open folder", "Again", "Reuse settings", "Delete"]
TAB_ORDER = [*FORM, "Output format", "Generate", *IMAGE, "orange star", "Menu", "Mode"]


def open_window(overlay: RunningOverlay, hands: Hands, prompt: str = "") -> None:
    """By the command that the shortcut runs, and by keys from there."""
    overlay.call("--toggle")
    eventually(lambda: hands.active_window() == BAR, "the bar has the keyboard")
    hands.type(prompt)
    hands.press("Control+Return" if prompt else "Return")
    eventually(lambda: hands.active_window() == WINDOW, "the window has the keyboard")
    overlay.person.find("Seed", "text")


def has_the_keyboard(person: Person, name: str, role: str | None = None) -> bool:
    """Whether the thing called ``name`` has it."""
    focused = person.focused()
    return bool(focused) and focused.get_name() == name and role in (None, focused.get_role_name())


def test_everything_that_can_have_the_keyboard_has_a_name(overlay: RunningOverlay, hands: Hands) -> None:
    person = overlay.person
    overlay.call("--toggle")
    person.find("Describe an image", "text")
    assert person.unnamed() == []
    hands.press("Escape")
    open_window(overlay, hands)
    assert person.unnamed() == []
    assert person.find("Steps", "spin button").get_value_iface().set_current_value(50)
    person.write("Prompt", "orange star")
    hands.press("Control+Return")
    person.find("Cancel orange star", "push button")
    assert person.unnamed() == []
    person.press("Vary", timeout_s=60)
    person.find("Image", "panel")
    assert person.unnamed() == []


def test_an_image_is_drawn_saved_copied_deleted_and_taken_back_by_keys_alone(
    overlay: RunningOverlay, hands: Hands, desktop: Desktop
) -> None:
    person = overlay.person
    open_window(overlay, hands, "orange star")
    person.find("Save", "push button", timeout_s=60)
    hands.press("Control+s")
    [saved] = eventually(lambda: list(overlay.images.rglob("orange-star-*.png")), "the saved image")
    hands.press("Control+c")
    person.find("Copied")
    paste = ["xclip", "-selection", "clipboard", "-t", "image/png", "-o"]
    pasted = subprocess.run(paste, env=desktop.environment, capture_output=True, check=True, timeout=20).stdout
    assert pasted == saved.read_bytes()

    prompt = person.find("Prompt", "text")
    hands.press("Control+a")
    hands.type("green star, white background")
    hands.press("Control+Return")
    person.find("green star", "push button")
    hands.press("Up")
    eventually(lambda: person.text(prompt) == "orange star", "the prompt before")
    hands.press("Down")
    eventually(lambda: person.text(prompt) == "green star, white background", "the newer prompt")
    eventually(lambda: person.see("Cancel", "push button") is None, "the second image", 60)

    hands.press("Control+Delete")
    eventually(lambda: not person.see("green star", "push button"), "the thumbnail goes away")
    eventually(lambda: not person.see("Removed from history"), "its message goes away", 60)
    hands.press("Control+z")
    person.find("green star", "push button")

    hands.press("Control+Delete")
    eventually(lambda: not person.see("green star", "push button"), "the thumbnail goes away again")
    hands.type("s")
    eventually(lambda: person.text(prompt).count("s") == 2, "the prompt is edited")
    hands.press("Control+z")
    eventually(lambda: person.text(prompt) == "green star, white background", "the key is the prompt's again")
    assert not person.see("green star", "push button")
    hands.press("Escape")
    eventually(lambda: WINDOW not in hands.windows(), "Escape hides the window")


def test_tab_goes_through_form_image_and_history_in_reading_order(
    overlay: RunningOverlay, own_service: OwnService, hands: Hands
) -> None:
    with own_service.client() as client:
        client.generate("orange star", seed=3)
    person = overlay.person
    open_window(overlay, hands)
    person.find("Save", "push button")
    visited: list[str] = []
    for _ in range(3 * len(TAB_ORDER)):
        before = eventually(person.focused, "something has the keyboard")
        name = before.get_name()
        assert name, "a stop without a name"
        if visited and name == "Prompt":
            break
        if name in TAB_ORDER and name not in visited:
            visited.append(name)
        hands.press("Tab")
        eventually(lambda before=before: person.focused() not in (None, before), f"Tab leaves {name!r}")
    assert visited == TAB_ORDER


def choose(person: Person, hands: Hands, row: str, *keys: str) -> None:
    """Open the menu of ``row``, move in it with ``keys``, and take what is there."""
    while not has_the_keyboard(person, row):
        before = person.focused()
        hands.press("Tab")
        eventually(lambda before=before: person.focused() not in (None, before), "Tab goes on")
    hands.press("space")
    eventually(lambda: person.focused() and not has_the_keyboard(person, row), "the menu has the keyboard")
    for key in (*keys, "Return"):
        hands.press(key)


def chosen(person: Person, row: str) -> str:
    """What ``row`` shows."""
    labels = []
    with contextlib.suppress(AttributeError):
        labels = [node.get_name() for node in person.below(person.see(row, "combo box"), "label")]
    return labels[-1] if labels else ""


def test_settings_follow_the_model_and_are_there_after_a_restart(
    run_overlay: Callable[..., AbstractContextManager[RunningOverlay]], hands: Hands
) -> None:
    with run_overlay() as overlay:
        person = overlay.person
        open_window(overlay, hands)
        assert person.see("Negative prompt", "text") is None, "the starter model has no use for one"
        assert chosen(person, "Size") == "1:1 – 128 × 128"
        while chosen(person, "Model") != "sdxl-base":
            before = chosen(person, "Model")
            choose(person, hands, "Model", "Down")
            eventually(lambda before=before: chosen(person, "Model") not in ("", before), "another model")
        person.find("Negative prompt", "text")
        assert chosen(person, "Size") == "1:1 – 1024 × 1024"
        choose(person, hands, "Size", "Down")
        eventually(lambda: chosen(person, "Size").startswith("4:3"), "the size that was chosen")
        choose(person, hands, "Size", "End")
        width = person.find("Width", "spin button")
        assert width.get_value_iface().set_current_value(1024)
        person.press("Another seed")
        seed = eventually(lambda: person.text(person.find("Seed", "text")), "a seed")
        person.write("Negative prompt", "blur")
    with run_overlay() as overlay:
        person = overlay.person
        open_window(overlay, hands)
        assert (chosen(person, "Model"), chosen(person, "Size")) == ("sdxl-base", "Other…")
        assert person.find("Width", "spin button").get_value_iface().get_current_value() == 1024
        assert person.text(person.find("Seed", "text")) == seed
        assert person.text(person.find("Negative prompt", "text")) == "blur"
        person.press("Keep this seed")
        eventually(lambda: not person.text(person.find("Seed", "text")), "a seed that is not kept is random")
        hands.press("F10")
        eventually(lambda: not has_the_keyboard(person, "Prompt"), "the menu has the keyboard")
        hands.press("Return")
        eventually(lambda: chosen(person, "Size") == "1:1 – 1024 × 1024", "the model's own size")
        assert person.see("Width", "spin button") is None
