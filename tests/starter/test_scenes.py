"""What the starter model is trained on: scenes whose captions it can read, none of them kept for the final check."""

from __future__ import annotations

import numpy as np
import pytest

from training.encode import MIXTURES, scene_of
from training.prompts import UNSEEN
from training.scenes import Item, Scene, meaning, placements, vary_caption
from training.tokenizer import token_ids

SAMPLE = 3000


@pytest.mark.parametrize("mixture", sorted(MIXTURES))
def test_no_training_scene_looks_like_an_unseen_prompt(mixture: str) -> None:
    unseen = {meaning(case.scene) for case in UNSEEN}
    assert unseen.isdisjoint(meaning(scene_of(mixture, 11, index)[0]) for index in range(SAMPLE))


@pytest.mark.parametrize("mixture", sorted(MIXTURES))
def test_every_wording_of_a_training_scene_is_known_tokens(mixture: str) -> None:
    known, rng = token_ids(), np.random.default_rng(0)
    for index in range(SAMPLE):
        scene, _ = scene_of(mixture, 11, index)
        assert set(vary_caption(scene, rng).split()) <= set(known), scene


def test_a_colour_that_a_thing_has_anyway_changes_nothing() -> None:
    assert meaning(Scene((Item("sun", "yellow"),), place="center")) == meaning(Scene((Item("sun"),)))
    assert meaning(Scene((Item("sun", "blue"),))) != meaning(Scene((Item("sun"),)))
    assert meaning(Scene((Item("heart", "red"),))) == meaning(Scene((Item("heart"),)))


@pytest.mark.parametrize(("relation", "axis", "sign"), [("and", 0, 1), ("above", 1, 1), ("below", 1, -1)])
def test_the_first_of_two_things_is_left_of_above_or_below_the_second(relation: str, axis: int, sign: int) -> None:
    spots = {item.name: (x, y) for item, x, y, _ in placements(Scene((Item("cat"), Item("dog")), relation=relation))}
    assert sign * (spots["dog"][axis] - spots["cat"][axis]) > 0.4
