"""`imagegen overlay --install` and `--uninstall` on each desktop, with the settings programs that the desktop has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.overlay.desktop import session_bus

ID = "org.neurolux.Overlay"
TOGGLE = f"gapplication action {ID} toggle"
GNOME_LIST = ("org.gnome.settings-daemon.plugins.media-keys", "custom-keybindings")
GNOME_ENTRY = (
    f"{GNOME_LIST[0]}.custom-keybinding:/org/gnome/settings-daemon/plugins/media-keys/custom-keybindings/neurolux/"
)
CINNAMON_ENTRY = (
    "org.cinnamon.desktop.keybindings.custom-keybinding:/org/cinnamon/desktop/keybindings/custom-keybindings/neurolux/"
)


@dataclass(frozen=True)
class Home:
    """A user's home and session bus, on no display."""

    path: Path
    environment: dict[str, str]

    def run(self, *command: str, desktop: str = "") -> str:
        environment = {**self.environment, "XDG_CURRENT_DESKTOP": desktop}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def overlay(self, option: str, desktop: str) -> str:
        return self.run(sys.executable, "-m", "overlay", option, desktop=desktop)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.path.rglob(f"{ID}.*")}

    def gsettings(self, schema: str, key: str) -> str:
        return self.run("gsettings", "get", schema, key)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "IMAGEGEN_"))}
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS"):
        kept.pop(name, None)
    repository = str(Path(__file__).parents[2])
    environment = {**kept, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "PYTHONPATH": repository}
    with session_bus(environment) as bus:
        yield Home(tmp_path, {**environment, "DBUS_SESSION_BUS_ADDRESS": bus})


def test_gnome_gets_files_and_a_custom_shortcut_and_all_of_it_back(home: Home) -> None:
    others = "['/org/gnome/settings-daemon/plugins/media-keys/custom-keybindings/custom0/']"
    home.run("gsettings", "set", *GNOME_LIST, others)
    told = home.run(sys.executable, "-m", "bridge", "overlay", "--install", desktop="ubuntu:GNOME")
    assert "Alt+Space shows and hides the overlay: a custom shortcut of the desktop (Settings > Keyboard" in told
    assert "took the key from activate-window-menu (was ['<Alt>space'])" in told
    assert "imagegen overlay --uninstall" in told
    assert home.gsettings(GNOME_ENTRY, "binding") == "'<Alt>space'"
    assert home.gsettings(GNOME_ENTRY, "command") == f"'{TOGGLE}'"
    assert home.gsettings(*GNOME_LIST) == others[:-1] + ", '" + GNOME_ENTRY.partition(":")[2] + "']"
    assert home.gsettings("org.gnome.desktop.wm.keybindings", "activate-window-menu") == "@as []"

    written = home.files()
    assert written == {
        f".local/share/applications/{ID}.desktop",
        f".local/share/dbus-1/services/{ID}.service",
        f".config/autostart/{ID}.desktop",
        f".local/share/icons/hicolor/scalable/apps/{ID}.svg",
    }
    for name in written:
        assert str(home.path / name) in told
        if name.endswith(".desktop"):
            home.run("desktop-file-validate", str(home.path / name))

    home.overlay("--install", "ubuntu:GNOME")  # once more: nothing is bound twice, and the undo stays what it was
    assert home.gsettings(*GNOME_LIST).count("neurolux") == 1

    told = home.overlay("--uninstall", "ubuntu:GNOME")
    assert "gave Alt+Space back" in told
    assert home.files() == set()
    assert home.gsettings(*GNOME_LIST) == others
    assert home.gsettings(GNOME_ENTRY, "binding") == "''"
    assert home.gsettings("org.gnome.desktop.wm.keybindings", "activate-window-menu") == "['<Alt>space']"
    assert home.overlay("--uninstall", "ubuntu:GNOME") == "nothing was installed"


def test_cinnamon_gets_a_custom_shortcut_and_its_key_back(home: Home) -> None:
    told = home.overlay("--install", "X-Cinnamon")
    assert "Custom Shortcuts" in told
    assert home.gsettings(CINNAMON_ENTRY, "binding") == "['<Alt>space']"
    assert home.gsettings("org.cinnamon.desktop.keybindings", "custom-list") == "['neurolux']"
    assert home.gsettings("org.cinnamon.desktop.keybindings.wm", "activate-window-menu") == "@as []"
    home.overlay("--uninstall", "X-Cinnamon")
    assert home.gsettings("org.cinnamon.desktop.keybindings", "custom-list") == "@as []"
    assert home.gsettings("org.cinnamon.desktop.keybindings.wm", "activate-window-menu") == "['<Alt>space']"


def test_xfce_gets_an_application_shortcut_and_the_window_menu_its_key_back(home: Home) -> None:
    channel = ("xfconf-query", "-c", "xfce4-keyboard-shortcuts")
    menu = "/xfwm4/custom/<Alt>space"
    home.run(*channel, "-p", menu, "-n", "-t", "string", "-s", "popup_menu_key")
    told = home.overlay("--install", "XFCE")
    assert "Settings > Keyboard > Application Shortcuts" in told
    assert home.run(*channel, "-p", "/commands/custom/<Alt>space") == TOGGLE
    assert menu not in home.run(*channel, "-l")
    home.overlay("--uninstall", "XFCE")
    assert home.run(*channel, "-p", menu) == "popup_menu_key"
    assert "/commands/custom/<Alt>space" not in home.run(*channel, "-l")


def test_plasma_gets_the_toggle_action_of_the_desktop_entry_and_krunner_its_key_back(home: Home) -> None:
    told = home.overlay("--install", "KDE")
    assert "works after the next login" in told
    shortcuts = home.path / ".config" / "kglobalshortcutsrc"
    assert shortcuts.read_text().split("\n\n") == [
        r"[org.kde.krunner.desktop]" + "\n" + r"_launch=Alt+F2\tSearch,Alt+Space\tAlt+F2\tSearch,KRunner",
        f"[{ID}.desktop]\ntoggle=Alt+Space,none,NeuroLux\n",
    ]
    entry = (home.path / ".local/share/applications" / f"{ID}.desktop").read_text()
    assert "Actions=toggle;" in entry
    assert "[Desktop Action toggle]" in entry
    home.overlay("--uninstall", "KDE")
    assert "Space" not in shortcuts.read_text()

    theirs = "_launch=Alt+Space,Alt+Space,KRunner\n"
    shortcuts.write_text("[org.kde.krunner.desktop]\n" + theirs)
    home.overlay("--install", "KDE")
    assert "_launch=none,Alt+Space\\tAlt+F2\\tSearch,KRunner" in shortcuts.read_text()
    home.overlay("--uninstall", "KDE")
    assert theirs in shortcuts.read_text()


def test_where_no_program_can_bind_a_key_the_command_to_bind_by_hand_is_said(home: Home) -> None:
    told = home.overlay("--install", "sway")
    assert "this desktop does not let programs bind keys; bind a key to this command" in told
    assert TOGGLE in told
