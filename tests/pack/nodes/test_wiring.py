"""The pictures of the help pages show the shipped graphs of today."""

from __future__ import annotations

from scripts.draw_wiring import COLORS, DOCS, PICTURES, pictures, reference

COLORS_OF_SOCKETS = DOCS.parent / "js" / "socket_colors.js"


def test_each_picture_is_what_the_graphs_give_and_its_help_page_shows_it() -> None:
    expected = pictures()
    assert sorted(PICTURES.iterdir()) == sorted(expected), "run python -m scripts.draw_wiring"
    for file, content in expected.items():
        assert file.read_text() == content, f"{file.name}: run python -m scripts.draw_wiring"
        assert reference(file.stem) in (DOCS / f"{file.stem}.md").read_text()


def test_pictures_and_editor_give_our_sockets_the_same_colours() -> None:
    script = COLORS_OF_SOCKETS.read_text()
    assert all(f'{name}: "{color}"' in script for name, color in COLORS.items() if name.startswith("NEUROLUX"))
