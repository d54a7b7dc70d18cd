"""Fetches the two emoji packages by name from the npm registry into the work folder.

Only ``npm pack`` is run: no package script is executed and nothing is installed.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from training.paths import work_dir


@dataclass(frozen=True)
class EmojiPackage:
    """One icon set on npm, pinned to the version the published weights were trained on."""

    style: str
    name: str
    version: str
    licence: str


PACKAGES = (
    EmojiPackage("flat", "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    EmojiPackage("noto", "@iconify-json/noto", "1.2.9", "Apache-2.0"),
)


def package_dir(package: EmojiPackage) -> Path:
    """Where ``package`` is unpacked."""
    return work_dir() / "packages" / package.style


def fetch(package: EmojiPackage) -> Path:
    """Download and unpack ``package`` unless it is already there; returns the path of its ``icons.json``."""
    folder = package_dir(package)
    icons = folder / "icons.json"
    if icons.is_file():
        return icons
    folder.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        ["npm", "pack", "--json", f"{package.name}@{package.version}"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    archive = folder / json.loads(packed.stdout)[0]["filename"].replace("@", "").replace("/", "-")
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/icons.json")
        if member is None:
            raise FileNotFoundError(f"{archive} holds no package/icons.json; remove it and fetch again")
        icons.write_bytes(member.read())
    archive.unlink()
    return icons


def load_icons(package: EmojiPackage) -> dict[str, str]:
    """Complete SVG documents by icon name, aliases resolved."""
    document = json.loads(fetch(package).read_text(encoding="utf-8"))
    bodies = {name: icon["body"] for name, icon in document["icons"].items()}
    for alias, target in document.get("aliases", {}).items():
        if target["parent"] in bodies:
            bodies.setdefault(alias, bodies[target["parent"]])
    width, height = document.get("width", 16), document.get("height", 16)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {names} viewBox="0 0 {width} {height}">'
    return {name: f"{head}{body}</svg>" for name, body in bodies.items()}


def main() -> None:
    """Fetch both packages."""
    for package in PACKAGES:
        icons = load_icons(package)
        print(f"{package.name} {package.version} ({package.licence}): {len(icons)} icons")


if __name__ == "__main__":
    main()
