"""Every relative link and anchor in the project's Markdown files leads somewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
GENERATED_FROM = {ROOT / "training" / "card_template.md": ROOT / "custom_nodes" / "neurolux" / "models" / "starter"}
"""Templates, and the folder that their links are relative to once they are filled in."""
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "output" for part in path.relative_to(ROOT).parts)
)

FENCED = re.compile(r"^( *)(```|~~~).*?^\1\2\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`+[^`]*`+")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def prose(text: str) -> str:
    """`text` without its code, in which brackets mean something else."""
    return CODE.sub("", FENCED.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for title in HEADING.findall(FENCED.sub("", text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(page: Path, folder: Path, root: Path = ROOT) -> Iterator[str]:
    """The links of `page` that lead nowhere, or out of `root`. They are relative to `folder`."""
    for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (folder / unquote(parts.path)).resolve() if parts.path else page
        if not target.exists():
            yield f"{link}: there is no {parts.path}"
        elif not target.is_relative_to(root):
            yield f"{link}: leads out of the project"
        elif parts.fragment and parts.fragment not in anchors(target.read_text(encoding="utf-8")):
            yield f"{link}: {target.name} has no heading {parts.fragment!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page, GENERATED_FROM.get(page, page.parent))) == []


def test_every_page_of_the_docs_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    reached, open_pages = {index}, [index]
    while open_pages:
        page = open_pages.pop()
        for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
            target = (page.parent / urlsplit(link).path).resolve()
            if target.suffix == ".md" and target.is_file() and target not in reached:
                reached.add(target)
                open_pages.append(target)
    assert {path for path in PAGES if path.is_relative_to(index.parent)} <= reached


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "# A page\n\n[other](other.md) [no file](nowhere.md) [no heading](#nothing) [own](#a-page)\n"
        "`[code](is-no-link.md)` [site](https://example.org/nowhere.md)\n",
        encoding="utf-8",
    )
    (tmp_path / "other.md").write_text("# Other", encoding="utf-8")
    found = list(broken_links(tmp_path / "page.md", tmp_path, tmp_path))
    assert [line.partition(":")[0] for line in found] == ["nowhere.md", "#nothing"]
