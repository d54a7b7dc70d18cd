"""The text of Apply LoRAs."""

from __future__ import annotations

import pytest


def test_names_strengths_comments_and_colons_in_names() -> None:
    from neurolux.adapters.lora.lists import read_list

    text = "a.safetensors: 0.8\n\n  people/b.safetensors\n# c.safetensors: 1\nd: e.safetensors:-2 \n"
    expected = [("a.safetensors", 0.8), ("people/b.safetensors", 1.0), ("d: e.safetensors", -2.0)]
    assert read_list(text) == expected
    assert read_list(" \n") == []


@pytest.mark.parametrize("line", ["a.safetensors: much", "a.safetensors: 5", ": 1", "a.safetensors: nan"])
def test_a_line_that_is_none_is_shown(line: str) -> None:
    from neurolux.adapters.lora.lists import read_list
    from neurolux.errors import InvalidParameter

    with pytest.raises(InvalidParameter, match="is not 'file: strength' with a strength from -4 to 4") as caught:
        read_list(f"fine.safetensors: 1\n{line}")
    assert line.strip() in str(caught.value)
