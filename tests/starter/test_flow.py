"""What the starter's training asks of the transformer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.flow import MiddleReader, Starter, random_size, text_ids
from training.scenes import SIDE, TOKEN


def test_training_sees_every_size_and_most_often_multiples_of_32() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_size(rng) for _ in range(2000)]
    assert {side for size in drawn for side in size} == set(range(SIDE, 2 * SIDE + 1, TOKEN))
    assert 0.75 < np.mean([width % 32 == height % 32 == 0 for width, height in drawn]) < 0.9
    assert 0.5 < np.mean([width == height for width, height in drawn]) < 0.65


def test_the_first_block_is_taught_where_the_middle_is() -> None:
    torch.manual_seed(0)
    starter = Starter()
    reader = MiddleReader(starter.transformer)
    with pytest.raises(RuntimeError, match="not run yet"):
        reader.loss((8, 8))

    text = text_ids(["red apple"], np.random.default_rng(0))

    def unread(rows: int, columns: int) -> torch.Tensor:
        starter(torch.randn(1, rows * columns, 64), torch.rand(1), text, (rows, columns))
        return reader.loss((rows, columns))

    optimizer = torch.optim.AdamW([*starter.parameters(), *reader.parameters()], lr=1e-3)
    losses = []
    for _ in range(20):
        for grid in ((8, 8), (16, 16), (10, 12)):
            optimizer.zero_grad()
            loss = unread(*grid)
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
    assert np.mean(losses[:3]) > 0.45
    assert np.mean(losses[-3:]) < 0.3
    taught = [name for name, weight in starter.transformer.named_parameters() if weight.grad is not None]
    assert any(".ff." in name for name in taught)
    assert not any(name.startswith("single_transformer_blocks") for name in taught)
