"""What a command prints comes from files, models and other programs: a terminal interprets none of it."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import unicodedata
from pathlib import Path

import pytest

import bridge.commands
from bridge.commands.main import main
from bridge.logs import HumanFormatter, JsonFormatter
from bridge.terminal import safe_line, safe_text, show
from tests.bridge.graphs import graph, workflow
from tests.bridge.house import House, write_mode

ATTACKS = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0=\x1b\\",
    "link": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "clear": "\x1b[2J\x1b[H",
    "8-bit": "\x9b31m\x9d0;owned\x9c",
    "backspace": "good\b\b\b\bevil",
    "carriage return": "error\rfine",
    "bell": "\x07",
    "null": "a\x00b",
    "delete": "a\x7fb",
    "vertical": "a\vb\fc",
    "next line": "a\x85b",
    "right to left": "\u202egpj.exe",
    "isolate": "\u2066a\u2069",
    "marks": "\u200ea\u200fb\u061c",
    "line separator": "a\u2028b\u2029c",
    "invisible": "a\u200bb\ufeffc\u00add\u2060",
    "tags": "a\U000e0041\U000e007f",
    "half a character": "a\ud800b\udce9",
}


def harmless(text: str) -> bool:
    """Whether a terminal only writes the text."""
    return all(c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


@pytest.mark.parametrize("kind", ATTACKS)
def test_what_a_terminal_would_interpret_is_written_out(kind: str) -> None:
    text = ATTACKS[kind]
    safe = safe_text(text)
    assert harmless(safe)
    assert "\\u" in safe
    assert safe_text(safe) == safe
    document = json.dumps({"a": text}, ensure_ascii=False)
    assert json.loads(safe_text(document)) == {"a": text}, "JSON keeps its meaning"


ORDINARY = "plain|größe|日本語|a\u00a0b|👩\u200d🎨|❤\ufe0f|עברית|العربية|नमस्ते|e\u0301|a\tb\nc|\ue000"


@pytest.mark.parametrize("text", ORDINARY.split("|"))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert safe_text(text) == text
    assert "\n" not in safe_line(text)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_printing_never_fails(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    for text in ("größe 日本語 \ud800", *ATTACKS.values()):
        show(text, file=stream)
    stream.flush()
    assert harmless(raw.getvalue().decode(encoding))


def test_every_command_prints_through_one_place() -> None:
    wrong = []
    for path in Path(bridge.commands.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called == "print" or called.endswith(("stdout.write", "stderr.write")):
                    wrong.append(f"{path.name}:{node.lineno}")
    assert not wrong


@pytest.mark.parametrize("formatter", [HumanFormatter, JsonFormatter])
@pytest.mark.parametrize("kind", ATTACKS)
def test_a_line_of_the_log_is_harmless(formatter: type[HumanFormatter | JsonFormatter], kind: str) -> None:
    record = logging.LogRecord("bridge.x", logging.WARNING, "", 1, "from %s", (ATTACKS[kind],), None)
    assert harmless(formatter(show_prompts=True).format(record))


EVIL = "".join(ATTACKS[kind] for kind in ("colour", "title", "8-bit", "right to left", "backspace"))


@pytest.mark.parametrize(
    "arguments",
    [["modes"], ["modes", "evil"], ["modes", "--json"], ["modes", "evil", "--json"], ["modes", "broken"], ["jobs"]],
)
async def test_no_file_reaches_the_terminal_of_a_command(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    nodes = graph()
    nodes["1"]["inputs"]["description"] = EVIL
    nodes["1"]["inputs"]["value"] = EVIL
    path = write_mode(tmp_path / "workflows", "evil", nodes)
    opened = workflow()
    note = {"id": 0, "type": "Note", "pos": [0, 0], "widgets_values": [f"# {EVIL}\n\n{EVIL}"]}
    path.write_text(json.dumps({**opened, "nodes": [note, *opened["nodes"]]}))
    (tmp_path / "workflows" / f"{EVIL}.json").write_text("{")
    (tmp_path / "workflows" / "broken.json").write_text(json.dumps({EVIL: 1}))
    gateway = await house.gateway()
    command = [*arguments, "--url", str(gateway.make_url("/"))]
    await asyncio.to_thread(main, command)
    printed = capsys.readouterr()
    assert harmless(printed.out + printed.err)
    assert "red" in printed.out + printed.err or arguments[-1] in ("broken", "jobs")
