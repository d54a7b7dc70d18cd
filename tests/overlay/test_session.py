"""The overlay among the other programs of a desktop: bus, keys, window manager, clipboard, notifications, drag."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from overlay.desktop.shortcuts.binding import TOGGLE_FALLBACK
from tests.overlay.conftest import APPLICATION, Desktop, OwnService, RunningOverlay, owned
from tests.overlay.desktop import Hands, eventually
from tests.overlay.drop_target import DROPPED, HOVERED, TITLE
from tests.overlay.notification_daemon import NotificationDaemon, notification_daemon

BAR, WINDOW = "NeuroLux", "Generate an image"
PROMPT = "orange fish, white background"
READY = "Your image is ready"


@pytest.fixture(scope="session")
def image(own_service: OwnService) -> bytes:
    """An image that the service has drawn: the newest of the history."""
    with own_service.client() as client:
        answer = client.generate(PROMPT, seed=11)
        return client.images(answer)[0]


@pytest.fixture
def shown(overlay: RunningOverlay, image: bytes, hands: Hands) -> RunningOverlay:
    """The window with that image in it, and the keyboard in its prompt."""
    show_image(overlay, hands)
    return overlay


def show_image(overlay: RunningOverlay, hands: Hands) -> None:
    overlay.call("--toggle")
    overlay.person.press("Generate an image")
    eventually(lambda: hands.active_window() == WINDOW, "the window has the keyboard")
    overlay.person.find("Save", "push button")
    thumbnail = overlay.person.find(PROMPT, "push button")
    assert thumbnail.get_action_iface().do_action(0)
    overlay.person.find(f"{PROMPT} · starter · seed 11", "label")


def seed_of(png: bytes) -> list[int]:
    with Image.open(io.BytesIO(png)) as opened:
        graph: dict[str, Any] = json.loads(opened.info["prompt"])
    return [node["inputs"]["seed"] for node in graph.values() if node["class_type"] == "NeuroLuxSample"]


def test_the_bar_stays_above_other_windows_every_time_it_is_shown(
    overlay: RunningOverlay, hands: Hands, desktop: Desktop
) -> None:
    for _ in range(2):
        overlay.call("--toggle")
        eventually(lambda: "_NET_WM_STATE_ABOVE" in hands.states(BAR), "the window manager keeps it above")
        window = str(hands.windows()[BAR].id)
        told = subprocess.run(["xprop", "-id", window, "_NET_WM_STATE"], env=desktop.environment, capture_output=True)
        assert b"_NET_WM_STATE_SKIP_TASKBAR" in told.stdout
        eventually(lambda: hands.active_window() == BAR, "the bar has the keyboard")
        hands.press("Escape")
        eventually(lambda: BAR not in hands.windows(), "Escape hides it")


def test_ctrl_c_puts_the_image_with_its_metadata_on_the_clipboard_for_other_programs(
    shown: RunningOverlay, hands: Hands, desktop: Desktop, image: bytes
) -> None:
    hands.press("Control+c")
    shown.person.find("Copied")
    paste = ["xclip", "-selection", "clipboard", "-t", "image/png", "-o"]
    pasted = subprocess.run(paste, env=desktop.environment, capture_output=True, check=True, timeout=20).stdout
    assert pasted == image
    assert seed_of(pasted) == [11]


def test_save_as_suggests_a_name_and_remembers_the_folder_and_ctrl_s_saves_there_and_overwrites_nothing(
    shown: RunningOverlay, hands: Hands, image: bytes
) -> None:
    hands.press("Control+Shift+s")
    eventually(lambda: hands.active_window() == "Save image", "the dialog has the keyboard")
    saved = shown.images / "NeuroLux" / "orange-fish-white-background-starter-11.png"
    shown.person.find("Name", "text")
    hands.press("Return")
    eventually(saved.is_file, "the saved file")
    assert saved.read_bytes() == image
    settings = shown.config / "neurolux-imagegen" / "overlay.json"
    eventually(lambda: json.loads(settings.read_text())["save_folder"] == str(saved.parent), "the folder is remembered")

    eventually(lambda: hands.active_window() == WINDOW, "the window has the keyboard again")
    hands.press("Control+s")
    second = saved.with_name("orange-fish-white-background-starter-11 (2).png")
    eventually(second.is_file, "a second file")
    assert second.read_bytes() == image


def test_ctrl_delete_removes_the_image_and_the_message_takes_it_back(shown: RunningOverlay, hands: Hands) -> None:
    hands.press("Control+Delete")
    eventually(lambda: not shown.person.see(PROMPT, "push button"), "the thumbnail goes away")
    shown.person.press("Undo")
    shown.person.find(PROMPT, "push button")


def test_a_drag_offers_the_image_and_a_file_with_a_good_name(
    desktop: Desktop, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from overlay.ui import images

    monkeypatch.setattr(images.GLib, "get_user_cache_dir", lambda: str(tmp_path))
    offered = images.drag_content(image, "image/png", "orange-fish-starter-11.png").ref_formats()
    assert {"image/png", "text/uri-list"} <= set(offered.get_mime_types())
    assert [(path.name, path.read_bytes()) for path in tmp_path.rglob("*.png")] == [
        ("orange-fish-starter-11.png", image)
    ]


@pytest.fixture
def drop_target(desktop: Desktop, tmp_path: Path) -> Iterator[Path]:
    """Another program that takes files; what it says is in this file."""
    said = tmp_path / "drop_target.txt"
    with said.open("w") as output:
        command = [sys.executable, "-m", "tests.overlay.drop_target"]
        process = subprocess.Popen(command, env=desktop.environment, stdout=output)
    yield said
    process.terminate()
    process.wait(10)


def test_an_image_dragged_into_another_program_arrives_there_as_a_file(
    shown: RunningOverlay, drop_target: Path, hands: Hands, image: bytes
) -> None:
    eventually(lambda: TITLE in hands.windows(), "the other program's window")
    hands.place(WINDOW, 0, 0)
    hands.place(TITLE, 1100, 300)
    eventually(lambda: hands.origin(WINDOW)[0] < 20 and hands.origin(TITLE)[0] >= 1100, "both can be seen")
    large = next(node for node in shown.person.all("image") if node.get_description() == PROMPT)
    (left, top), (across, down) = hands.origin(WINDOW), shown.person.middle(large)
    hands.drag((left + across, top + down), (1180, 400), lambda: HOVERED in drop_target.read_text())
    [line] = eventually(
        lambda: [line for line in drop_target.read_text().splitlines() if line.startswith(DROPPED)], "the drop"
    )
    dropped = Path(line.removeprefix(DROPPED))
    assert (dropped.name, dropped.read_bytes()) == ("orange-fish-white-background-starter-11.png", image)


@pytest.fixture
def notifications(desktop: Desktop) -> Iterator[NotificationDaemon]:
    """The desktop's notifications, there before the overlay starts."""
    with notification_daemon(desktop.environment["DBUS_SESSION_BUS_ADDRESS"]) as daemon:
        yield daemon


def test_an_image_that_is_ready_while_hidden_is_told_with_save_and_open(
    notifications: NotificationDaemon, overlay: RunningOverlay, own_service: OwnService, hands: Hands
) -> None:
    saved_or_opened: dict[str, Callable[[], object]] = {
        "Save": lambda: list(overlay.images.rglob("green-frog*.png")),
        "Open": lambda: WINDOW in hands.windows(),
    }
    overlay.call("--toggle")
    overlay.person.press("Generate an image")
    for number, (label, happens) in enumerate(saved_or_opened.items()):
        with own_service.paused():  # until the window is hidden
            overlay.call("--generate", "green frog, yellow background")
            eventually(lambda: hands.active_window() == WINDOW, "the window has the keyboard")
            overlay.person.find("green frog", "push button")
            eventually(lambda: hands.press("Escape") or WINDOW not in hands.windows(), "the window is hidden")
        note = eventually(lambda number=number: notifications.titled(READY)[number:], "the notification", 60)[0]
        assert note.body == "green frog, yellow background"
        assert WINDOW not in hands.windows(), "saving shows no window"
        notifications.press(note, label)
        eventually(happens, f"what {label} says")


def test_a_notification_that_is_older_than_the_overlay_still_saves_its_image(
    notifications: NotificationDaemon, overlay: RunningOverlay, own_service: OwnService, desktop: Desktop, hands: Hands
) -> None:
    with own_service.client() as client:
        answer = client.generate("blue fish", seed=5)
        image = client.images(answer)[0]
    press = ["gapplication", "action", APPLICATION, "save-job"]
    subprocess.run([*press, f"'{answer.job_id}'"], env=desktop.environment, check=True, timeout=20)
    [saved] = eventually(lambda: list(overlay.images.rglob("*.png")), "the saved image")
    assert (saved.name, saved.read_bytes()) == ("blue-fish-starter-5.png", image)
    eventually(lambda: notifications.titled(f"Saved as {saved.name}"), "the desktop says so")
    subprocess.run([*press, "'gone'"], env=desktop.environment, check=True, timeout=20)
    eventually(lambda: notifications.titled("The image could not be saved"), "the desktop says why not")
    assert WINDOW not in hands.windows()


@pytest.fixture
def installed(desktop: Desktop) -> Iterator[Callable[[], str]]:
    """Installs the overlay for the desktop's user, on a desktop without settings for keys."""
    environment = {**desktop.environment, "XDG_CURRENT_DESKTOP": "openbox"}

    def overlay(option: str) -> str:
        command = [sys.executable, "-m", "overlay", option]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    try:
        yield lambda: overlay("--install")
    finally:
        overlay("--uninstall")
        with contextlib.suppress(subprocess.CalledProcessError):  # it has ended by itself
            subprocess.run(
                ["gapplication", "action", APPLICATION, "quit"], env=desktop.environment, check=True, timeout=20
            )
        eventually(lambda: not owned(desktop), "the overlay's end")


def test_after_the_installation_alt_space_toggles_the_bar_and_the_bus_starts_the_overlay(
    installed: Callable[[], str], desktop: Desktop, hands: Hands
) -> None:
    assert not owned(desktop)
    told = installed()
    assert "held by the running overlay with an X11 key grab" in told
    eventually(lambda: owned(desktop), "the bus has started the overlay")
    assert BAR not in hands.windows()
    for _ in range(2):
        hands.press("Alt+space")
        eventually(lambda: hands.active_window() == BAR, "Alt+Space shows the bar, with the keyboard in it")
        hands.press("Alt+space")
        eventually(lambda: BAR not in hands.windows(), "Alt+Space hides the bar")

    environment = desktop.environment
    subprocess.run([sys.executable, "-m", "overlay", "--uninstall"], env=environment, check=True, capture_output=True)
    hands.press("Alt+space")
    subprocess.run(["gapplication", "action", APPLICATION, "toggle"], env=environment, check=True, timeout=20)
    eventually(lambda: BAR in hands.windows(), "the overlay still runs")
    hands.press("Alt+space")
    assert BAR in hands.windows(), "and no longer holds the key"


def test_what_has_no_gapplication_calls_the_bus_which_starts_the_overlay(
    installed: Callable[[], str], desktop: Desktop, hands: Hands
) -> None:
    installed()
    subprocess.run(["gapplication", "action", APPLICATION, "quit"], env=desktop.environment, check=True, timeout=20)
    eventually(lambda: not owned(desktop), "the overlay's end")
    subprocess.run(TOGGLE_FALLBACK, env=desktop.environment, check=True, timeout=60, capture_output=True)
    eventually(lambda: hands.active_window() == BAR, "the bar")
    subprocess.run(TOGGLE_FALLBACK, env=desktop.environment, check=True, timeout=60, capture_output=True)
    eventually(lambda: BAR not in hands.windows(), "the bar is hidden")
