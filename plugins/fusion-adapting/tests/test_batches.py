"""Results come in the order of the examples, whatever batches they were computed in."""

from __future__ import annotations

from itertools import chain

import pytest
from torch import nn

from fusion_adapting import map_batches


@pytest.mark.parametrize("count", [0, 1, 2, 7, 16, 33])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_example_is_in_one_batch_of_similar_sizes(count: int, batch_size: int) -> None:
    examples = ["x" * (1 + 31 * number % 13) for number in range(count)]
    batches: list[list[str]] = []

    def measure(batch: list[str]) -> list[int]:
        assert not model.training
        batches.append(batch)
        return [len(example) for example in batch]

    model = nn.Linear(1, 1).train()
    results = map_batches(measure, examples, model, batch_size=batch_size, label="")
    assert results == [len(example) for example in examples]
    assert model.training
    assert sorted(chain.from_iterable(batches)) == sorted(examples)
    sizes = [len(batch) for batch in batches]
    assert max(sizes, default=0) <= batch_size
    assert len(sizes) == -(-count // batch_size)
    assert all(max(sizes) - size < len(sizes) for size in sizes)
    padded = sum(len(batch) * max(map(len, batch)) for batch in batches)
    in_order = [examples[n : n + batch_size] for n in range(0, count, batch_size)]
    assert padded <= sum(len(batch) * max(map(len, batch)) for batch in in_order)
