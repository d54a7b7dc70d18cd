"""Lists that a person types: what they mean, and what is said where they mean nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.pack.conftest import REPO  # noqa: F401 - puts the pack on the path


def test_prompts_are_lines_and_empty_ones_do_not_count() -> None:
    from neurolux.stages.many_values import prompt_lines

    lines = prompt_lines("\nred circle, left\n  \n blue square --seed 5 \r\n")
    assert [(line.number, line.text) for line in lines] == [(1, "red circle, left"), (2, "blue square --seed 5")]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("7", [7]),
        ("1-4, 9", [1, 2, 3, 4, 9]),
        ("3\n1 - 2\n", [3, 1, 2]),
        ("5,5,", [5, 5]),
        ("18446744073709551616", [2**64]),  # read here, refused where it is drawn
    ],
)
def test_whole_numbers(text: str, numbers: list[int]) -> None:
    from neurolux.stages.many_values import whole_numbers

    assert whole_numbers("seeds", text) == numbers


@pytest.mark.parametrize(
    ("setting", "text", "shown", "used"),
    [
        ("prompt", "red, blue", ["red", "blue"], ["red", "blue"]),
        ("prompt", "red circle, left\nstar\n", ["red circle, left", "star"], ["red circle, left", "star"]),
        ("seed", "1-2, 9", ["seed 1", "seed 2", "seed 9"], [1, 2, 9]),
        ("num_inference_steps", "4\n8", ["steps 4", "steps 8"], [4, 8]),
        ("guidance_scale", "1, 2.50", ["guidance 1", "guidance 2.5"], [1.0, 2.5]),
        ("lora_strength", "-1, 0", ["LoRA strength -1", "LoRA strength 0"], [-1.0, 0.0]),
        ("size", "768, 1024x512, 64 × 32", ["size 768 x 768", "size 1024 x 512", "size 64 x 32"], None),
        ("model", "starter, flux-dev", ["starter", "flux-dev"], ["starter", "flux-dev"]),
    ],
)
def test_values_of_a_side(setting: str, text: str, shown: list[str], used: list[object] | None) -> None:
    from neurolux.stages.many_values import read_axis

    axis = read_axis("x", setting, text, "a red circle, left")
    assert axis is not None
    assert [axis.label(value) for value in axis.values] == shown
    if used is not None:
        assert [value.used for value in axis.values] == used


def test_sizes_are_width_and_height() -> None:
    from neurolux.stages.many_values import read_axis

    axis = read_axis("y", "size", "768, 1024x512", "")
    assert axis is not None
    assert [value.used for value in axis.values] == [(768, 768), (1024, 512)]


def axis_of(setting: str, text: str) -> Callable[[], object]:
    from neurolux.stages.many_values import read_axis

    return lambda: read_axis("x", setting, text, "a red circle")


def numbers_of(text: str) -> Callable[[], object]:
    from neurolux.stages.many_values import whole_numbers

    return lambda: whole_numbers("seeds", text)


def pairs_of(prompts: int, seeds: int, combine: str = "pairs") -> Callable[[], object]:
    from neurolux.stages.many_values import Line, combined

    return lambda: combined([Line(n, "a") for n in range(prompts)], list(range(seeds)), combine)


@pytest.mark.parametrize(
    ("make", "arguments", "field", "message"),
    [
        (numbers_of, ("",), "seeds", "seeds is empty; write numbers and ranges such as 1-4, 9"),
        (numbers_of, ("1, red",), "seeds", "'red' is neither a number nor a range"),
        (numbers_of, ("-4",), "seeds", "'-4' is neither a number nor a range"),
        (numbers_of, ("9-1",), "seeds", "the range 9-1 runs backwards; write 1-9"),
        (numbers_of, ("0-99999999999999999999",), "seeds", "more than the 64 of one job; send several jobs"),
        (numbers_of, ("1-60, 1-5",), "seeds", "65 images are more than the 64"),
        (
            pairs_of,
            (3, 2),
            "seeds",
            "there are 3 prompts and 2 seeds; change one of the lists, or set combine to every",
        ),
        (pairs_of, (9, 8, "every"), "prompts", "72 images are more than the 64"),
        (pairs_of, (65, 65), "prompts", "65 images are more than the 64"),
        (pairs_of, (1, 1, "zip"), "combine", "combine 'zip' is not known; use every or pairs"),
        (axis_of, ("colour", "red"), "x_setting", "x_setting 'colour' is not known; use prompt, seed, num_inference_"),
        (axis_of, ("prompt", "green, red"), "x_values", "the prompt does not contain 'green'"),
        (axis_of, ("prompt", " , "), "x_values", "x_values is empty; write the values of prompt"),
        (axis_of, ("guidance_scale", "1, high"), "x_values", "'high' is not a number"),
        (axis_of, ("guidance_scale", "inf"), "x_values", "'inf' is not a number"),
        (axis_of, ("size", "big"), "x_values", "'big' is not a size; write for example 1024 or 1024x768"),
        (axis_of, ("num_inference_steps", "4.5"), "x_values", "'4.5' is neither a number nor a range"),
    ],
)
def test_what_means_nothing_is_explained(
    make: Callable[..., Callable[[], object]], arguments: tuple[object, ...], field: str, message: str
) -> None:
    from neurolux.errors import InvalidParameter

    with pytest.raises(InvalidParameter) as caught:
        make(*arguments)()
    assert message in str(caught.value)
    assert caught.value.field == field


def test_prompts_and_seeds_are_combined() -> None:
    from neurolux.stages.many_values import Line, combined

    a, b = Line(1, "a"), Line(2, "b")
    assert combined([a, b], [7, 8], "every") == [(a, 7), (a, 8), (b, 7), (b, 8)]
    assert combined([a, b], [7, 8], "pairs") == [(a, 7), (b, 8)]


def test_parts_of_a_prompt_are_replaced_all_at_once() -> None:
    from neurolux.stages.many_values import replaced

    assert replaced("red circle, blue ground", [("red", "blue"), ("blue", "red")]) == "blue circle, red ground"
    assert replaced("a (b) c", [("(b)", r"\1")]) == r"a \1 c"
    assert replaced("red redder", [("red", "x"), ("redder", "y")]) == "x y"
    assert replaced("red circle", []) == "red circle"
