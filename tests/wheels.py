"""Wheels from the package index that only tests need: fetched once, pinned by their sha256, and kept in ``.cache``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import uv

CACHE = Path(__file__).parents[1] / ".cache" / "wheels"


@dataclass(frozen=True)
class Wheel:
    """A version of a package and the sha256 of its wheel."""

    name: str
    version: str
    sha256: str

    def unpacked(self) -> Path:
        """The folder with its content."""
        folder = CACHE / f"{self.name}-{self.version}"
        if not folder.is_dir():
            CACHE.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=CACHE) as scratch:
                self._fetch(Path(scratch))
                try:
                    (Path(scratch) / "content").rename(folder)
                except OSError:
                    if not folder.is_dir():  # Else another process was first.
                        raise
        return folder

    def _fetch(self, scratch: Path) -> None:
        requirements = scratch / "requirements.txt"
        requirements.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        options = ["--require-hashes", "--no-deps", "--no-build", "--python", sys.executable]
        command = [uv.find_uv_bin(), "pip", "install", *options, "--target", str(scratch / "content")]
        run = subprocess.run([*command, "-r", str(requirements)], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
