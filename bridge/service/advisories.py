"""What is known of ComfyUI's versions: the advisories published for them."""

from __future__ import annotations

import re

ADVISORIES: dict[str, tuple[str, ...]] = {
    "0.28.0": ("GHSA-53g8-45wq-pcv8", "GHSA-rj8c-c4p8-3c5h", "GHSA-pj59-g5vv-74q4", "GHSA-rvxv-29p8-pxgq"),
}
"""GitHub advisories of ComfyUI, by the version that fixes them."""


def known_of(version: str | None) -> str | None:
    """One sentence about the published advisories that a version has; None if it has none."""
    if version is None:
        return "this ComfyUI does not say its version: nothing is known of it"
    open_ = {fixed: names for fixed, names in ADVISORIES.items() if _order(version) < _order(fixed)}
    if not open_:
        return None
    names = [name for each in open_.values() for name in each]
    return (
        f"ComfyUI {version} has {len(names)} published advisories ({', '.join(names)}), fixed in "
        f"{max(open_, key=_order)}: keep it on loopback"
    )


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
