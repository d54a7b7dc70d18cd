"""Published security advisories of ComfyUI, and which of them concern a version.

A record written by hand from GitHub's advisories (github.com/Comfy-Org/ComfyUI/security/advisories): nothing is
fetched. The pack's guard (`custom_nodes/neurolux/guard`) closes some of them in the versions that have them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KNOWN_AS_OF = "2026-10-15"
"""The day of this record. An advisory that was published later is not in it."""


@dataclass(frozen=True)
class Advisory:
    """One advisory. `note`: for whom it does not matter, and why; empty if it matters for everybody."""

    id: str
    summary: str
    fixed_in: str
    closed_by_guard: bool
    note: str = ""

    @property
    def url(self) -> str:
        owner = "ComfyUI-Manager" if self.note else "ComfyUI"
        return f"https://github.com/Comfy-Org/{owner}/security/advisories/{self.id}"

    def __str__(self) -> str:
        """One line for people."""
        remedy = "closed by NeuroLux's guard" if self.closed_by_guard else self.note
        return f"{self.id} (fixed in {self.fixed_in}): {self.summary}; {remedy}"


ADVISORIES = (
    Advisory("GHSA-53g8-45wq-pcv8", "stored cross-site scripting through /userdata", "0.28.0", True),
    Advisory("GHSA-rj8c-c4p8-3c5h", "cross-site scripting by an uploaded SVG that /view shows", "0.28.0", True),
    Advisory("GHSA-pj59-g5vv-74q4", "path traversal in /experiment/models/preview", "0.28.0", True),
    Advisory("GHSA-rvxv-29p8-pxgq", "path traversal of LoadImage through /prompt", "0.28.0", True),
    Advisory(
        "GHSA-95pq-hr8p-f5g7",
        "ComfyUI-Manager's settings can be written through /userdata",
        "0.3.76",
        False,
        "matters only where ComfyUI-Manager is installed, which a managed ComfyUI does not have",
    ),
)
_NUMBERS = re.compile(r"\s*[vV]?(\d+(?:\.\d+)*)")


def known_of(version: str) -> list[Advisory]:
    """The advisories that concern this version of ComfyUI; all of them if it is no version, such as `unknown`."""
    running = version_numbers(version)
    return [each for each in ADVISORIES if not running or running < version_numbers(each.fixed_in)]


def version_numbers(version: str) -> tuple[int, ...]:
    """(0, 28) for `v0.28.0`: trailing zeros do not count. Empty if there is no number."""
    match = _NUMBERS.match(version)
    if match is None:
        return ()
    numbers = [int(number) for number in match[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
