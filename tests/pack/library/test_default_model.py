"""The choice of a model for a machine, which is also the model of requests that name none: by facts of the catalog."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from neurolux.catalog.reading import read_catalog
from neurolux.library.plan_query import machine_for, parse_query
from neurolux.library.recommendation import Candidate, Choice, choose, plan_model
from neurolux.planning.records import Machine

NAMES = ("starter", "flux-schnell", "flux-dev", "flux-fill-dev", "sdxl-lightning", "sdxl-turbo", "sd15",
         "chroma1-hd", "z-image-turbo", "z-image")  # fmt: skip
"""Models that differ in what the choice depends on. The catalog has more, and will."""


@cache
def planned(vram: str, ram: str) -> tuple[Candidate, ...]:
    """The plans of ``NAMES`` on a card of that size or name."""
    key = "card" if vram.startswith("RTX") else "vram"
    here = Machine("cpu", 0, 0, bf16=True, fp16=True)
    machine = machine_for(parse_query({key: vram, "ram": ram}), here)
    return tuple(plan_model(read_catalog().models[name], machine) for name in NAMES)


def chosen(candidates: Collection[Candidate], here: Collection[str] = ()) -> Choice:
    """The choice, where ``here`` and the model that ships are on the machine."""
    return choose(candidates, {*here, "starter"}, "starter")


@pytest.mark.parametrize(
    ("vram", "ram", "here", "best", "default"),
    [
        ("RTX 3060", "32GB", (), "z-image-turbo", "starter"),
        ("RTX 3060", "12GB", (), "sdxl-lightning", "starter"),  # the others would be read from the disk
        ("1GB", "1GB", (), "starter", "starter"),  # nothing else fits
        ("0", "64GB", (), "starter", "starter"),
        ("0", "64GB", ("flux-dev",), "flux-dev", "flux-dev"),  # whoever has it has accepted its licence
        ("0", "64GB", ("flux-dev", "flux-schnell"), "flux-schnell", "flux-schnell"),
        ("RTX 3060", "32GB", ("sdxl-lightning",), "sdxl-lightning", "sdxl-lightning"),
        ("RTX 3060", "32GB", ("flux-dev", "sd15"), "sd15", "sd15"),
        ("RTX 3060", "32GB", ("sd15", "sdxl-lightning"), "sdxl-lightning", "sdxl-lightning"),  # larger images
        ("RTX 3060", "32GB", ("z-image", "chroma1-hd", "z-image-turbo"), "z-image-turbo", "z-image-turbo"),  # faster
        ("RTX 3060", "32GB", ("flux-fill-dev",), "z-image-turbo", "starter"),  # it only fills
        ("1GB", "1GB", ("flux-dev",), "starter", "starter"),
    ],
)
def test_the_choice_is_what_is_here_then_what_fits_then_the_licence(
    vram: str, ram: str, here: tuple[str, ...], best: str, default: str
) -> None:
    choice = chosen(planned(vram, ram), here)
    assert (choice.best.model.name, choice.default) == (best, default)
    assert {one.model.name for one, reason in choice.others if reason} == {*NAMES} - {best}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"license": "OpenRAIL++", "terms": "not for weapons"}, "not for weapons"),
        ({"license": "Community", "terms": "free below 1 M$ of revenue"}, "free below 1 M$ of revenue"),
        ({"commercial_use": False}, "no commercial use"),
        ({"commercial_use": False, "terms": "for research"}, "for research"),
        ({"purpose": "edit"}, "edits images by an instruction only"),
    ],
)  # fmt: skip
def test_it_follows_the_facts_of_the_catalog(facts: dict[str, Any], reason: str) -> None:
    before = planned("RTX 3060", "32GB")
    changed = [
        replace(one, model=replace(one.model, **facts)) if one.model.name == "z-image-turbo" else one for one in before
    ]
    choice = chosen(changed)
    assert (chosen(before).best.model.name, choice.best.model.name) == ("z-image-turbo", "z-image")
    assert dict((one.model.name, why) for one, why in choice.others)["z-image-turbo"] == reason


def test_a_gated_model_is_named_with_what_it_asks() -> None:
    choice = chosen(planned("RTX 3060", "32GB"))
    reasons = {one.model.name: why for one, why in choice.others}
    assert reasons["flux-schnell"].startswith("gated: accept its licence at https://huggingface.co/black-forest-labs/")
    assert reasons["flux-dev"].startswith("no commercial use; gated: ")
    small = {one.model.name: why for one, why in chosen(planned("1GB", "1GB")).others}
    assert small["z-image"].startswith("does not fit: it needs ")
