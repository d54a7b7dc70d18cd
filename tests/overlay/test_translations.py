"""The overlay's texts can be translated: the template is current, and a translation is used everywhere."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.overlay.conftest import REPOSITORY, RunningOverlay

TEMPLATE = REPOSITORY / "overlay" / "locale" / "neurolux-overlay.pot"
GERMAN = {
    "Generate an image": "Ein Bild erzeugen",  # in a .ui file
    "Generate": "Erzeugen",
    "No image yet": "Noch kein Bild",
    "Model": "Modell",  # in Python
    "Size": "Größe",
}


def test_the_template_has_every_text_of_the_overlay(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.pot"
    subprocess.run([str(REPOSITORY / "scripts" / "extract_texts.sh"), str(fresh)], check=True, capture_output=True)
    assert fresh.read_text() == TEMPLATE.read_text(), "run `make pot`"


def test_a_translation_is_used_in_the_layouts_and_in_the_code(
    run_overlay: Callable[[dict[str, str]], AbstractContextManager[RunningOverlay]], tmp_path: Path
) -> None:
    folder = tmp_path / "locale" / "de" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    texts = "".join(f'msgid "{english}"\nmsgstr "{german}"\n\n' for english, german in GERMAN.items())
    header = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
    compiled = folder / "neurolux-overlay.mo"
    subprocess.run(["msgfmt", "-", "-o", str(compiled)], input=header + texts, text=True, check=True)
    german = {"LANGUAGE": "de", "LC_ALL": "C.UTF-8", "TEXTDOMAINDIR": str(tmp_path / "locale")}
    with run_overlay(german) as overlay:
        overlay.call("--toggle")
        overlay.person.press("Ein Bild erzeugen")
        overlay.person.find("Erzeugen", "push button")
        overlay.person.find("Modell")
        overlay.person.find("Größe")
