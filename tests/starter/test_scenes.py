"""What the starter model is trained on: scenes whose captions it can read, none of them kept for the final check."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from training.encode import MIXTURES, scene_of
from training.models import build_t5, build_transformer
from training.prompts import UNSEEN
from training.scenes import Item, Scene, boxes, draw, meaning, placements, vary_caption
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


def test_a_thing_is_the_same_tokens_wherever_it_stands() -> None:
    disc = np.zeros((96, 96, 4), np.uint8)
    disc[8:88, 8:88] = 255
    sprites = {"shape/circle": disc}
    red, blue = Item("circle", "red"), Item("circle", "blue")
    left = draw(Scene((red,), place="left"), sprites)
    right = draw(Scene((red,), place="right"), sprites)
    top_left = draw(Scene((red,), place="top left"), sprites)
    pair = draw(Scene((blue, red), relation="and"), sprites)
    wide = draw(Scene((red,), place="left"), sprites, (176, 128))
    assert (left != 255).any()
    np.testing.assert_array_equal(left[:, :64], right[:, 64:])
    np.testing.assert_array_equal(left[32:96, :64], top_left[:64, :64])
    np.testing.assert_array_equal(pair[:, 64:], right[:, 64:])
    np.testing.assert_array_equal(left[:, :64], wide[:, :64])
    wide_right = draw(Scene((red,), place="right"), sprites, (176, 128))
    np.testing.assert_array_equal(right[:, 64:], wide_right[:, 112:])
    wide_pair = draw(Scene((blue, red), relation="and"), sprites, (208, 176))
    np.testing.assert_array_equal(pair, wide_pair[16:144, 32:160])


@pytest.mark.parametrize("size", [(128, 128), (256, 128), (144, 240), (208, 192), (256, 256)])
def test_things_of_every_scene_are_inside_an_image_of_any_size(size: tuple[int, int]) -> None:
    for index in range(300):
        scene, _ = scene_of("composed", 12, index)
        for item, left, top, side in boxes(scene, size):
            over = side // 16 if item.size == "big" else 0
            assert -over <= left <= size[0] - side + over, (scene, left)
            assert -over <= top <= size[1] - side + over, (scene, top)


@torch.no_grad()
def test_a_word_knows_the_words_around_it_before_any_training() -> None:
    torch.manual_seed(0)
    t5 = build_t5(40)
    circle, above, square = 10, 11, 12

    def moved(one: list[int], other: list[int], word: int) -> float:
        """How much the state of ``word`` differs between two sentences, in shares of its size."""
        states = [t5(torch.tensor([words + [1] + [0] * 4]))[0][0, words.index(word)] for words in (one, other)]
        return float((states[0] - states[1]).norm() / states[0].norm())

    assert moved([circle, above, square], [square, above, circle], circle) > 0.1


@torch.no_grad()
@pytest.mark.parametrize(("rows", "columns", "words"), [(8, 8, 16), (16, 16, 32), (9, 15, 24), (16, 8, 32)])
def test_a_token_feels_its_distance_from_the_middle_before_any_training(rows: int, columns: int, words: int) -> None:
    torch.manual_seed(0)
    transformer = build_transformer()
    felt = []
    attention = transformer.transformer_blocks[0].attn
    attention.to_out[0].register_forward_pre_hook(lambda _, given: felt.append(given[0]))
    transformer(
        hidden_states=torch.randn(1, rows * columns, 64),
        timestep=torch.ones(1),
        pooled_projections=torch.randn(1, 256),
        encoder_hidden_states=torch.randn(1, words, 256),
        txt_ids=torch.zeros(words, 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(1, rows, columns, torch.device("cpu"), torch.float32),
    )
    heads = felt[0][0].reshape(rows, columns, 8, 32)[..., 0]
    for first, last, found in ((0, 4, heads[:, 0]), (6, 7, heads[0])):
        distance = torch.atanh(found[:, last]) - torch.atanh(found[:, first])
        expected = 0.2 * (torch.arange(len(found)) - (len(found) - 1) / 2)
        torch.testing.assert_close(distance, expected, atol=0.15, rtol=0.0)
