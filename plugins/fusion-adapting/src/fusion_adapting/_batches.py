"""Batches of examples of similar size, for measuring models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fusion_core import evaluation_mode, note
from fusion_core.weights.merging.execution import map_on_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn


def map_batches(  # noqa: PLR0913 - the examples, the model, and how both meet
    function: Callable[[Any], Iterable[Any]],
    examples: Sequence[Any],
    model: nn.Module,
    *,
    batch_size: int,
    label: str,
    kind: str = "texts",
    size_of: Callable[[Any], int] = len,
) -> list[Any]:
    """Apply a function to batches of examples; return one result per example, in their order.

    `function` takes a list of examples and returns one result for each. The model is in evaluation
    mode meanwhile. Examples of similar size share a batch, so that little is padded, and the
    largest come first, so that memory that does not suffice is noticed at once. Batches are nearly
    equal in number, so that no core waits for a larger one. On the CPU, one batch runs per core at
    the same time; the batches, and so the results, are the same for any number of cores. `label`
    and `kind` name the examples in progress notes.
    """
    order = sorted(range(len(examples)), key=lambda number: -size_of(examples[number]))
    on_cpu = next(model.parameters()).device.type == "cpu"
    batches = _split(order, batch_size)

    def apply(numbers: Sequence[int]) -> Iterable[Any]:
        return function([examples[number] for number in numbers])

    results: dict[int, Any] = {}
    with evaluation_mode(model):
        outputs = map_on_cores(apply, batches) if on_cpu else map(apply, batches)
        for numbers, values in zip(batches, outputs, strict=True):
            results.update(zip(numbers, values, strict=True))
            note(f"{label}: {len(results):,} of {len(examples):,} {kind}")
    return [results[number] for number in range(len(examples))]


def _split(order: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """Split numbers into as few batches as possible, of nearly equal size."""
    count = math.ceil(len(order) / batch_size)
    size = math.ceil(len(order) / max(1, count))
    return [order[start : start + size] for start in range(0, len(order), max(1, size))]
