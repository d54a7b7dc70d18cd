"""What is known of the ComfyUI that runs."""

from __future__ import annotations

import pytest

from bridge.service.advisories import ADVISORIES, known_of
from bridge.service.installer import PINNED_VERSION


@pytest.mark.parametrize(
    ("version", "count"),
    [
        ("0.3.75", 5),
        ("v0.3.75", 5),
        ("0.3.75-7-gabcdef", 5),
        ("0.3.76", 4),
        ("0.3.76.0", 4),
        ("0.9.2", 4),
        ("0.27.9", 4),
        ("0.28", 0),
        ("0.28.0", 0),
        ("0.28.1", 0),
        ("0.100.0", 0),
        ("1.0", 0),
        ("", len(ADVISORIES)),
        ("unknown", len(ADVISORIES)),
    ],
)
def test_a_version_has_the_advisories_that_were_fixed_after_it(version: str, count: int) -> None:
    assert len(known_of(version)) == count


def test_each_advisory_of_the_pinned_comfyui_is_closed_or_says_whom_it_concerns() -> None:
    for advisory in known_of(PINNED_VERSION):
        assert advisory.closed_by_guard or advisory.note, advisory.id
        assert advisory.id in str(advisory)
        assert advisory.url.endswith(advisory.id)
