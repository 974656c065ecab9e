"""Tell whether a merge is nearly its base, or nearly one of its experts, from samples of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.merging.piece import is_merged
from fusion_core.weights.source import Cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.weights.source import TensorInfo, WeightSource

#: Two models count as nearly the same below this fraction of the usual distance. The mean of a
#: hundred unrelated experts is still 0.1 of an expert's distance away from their base.
_NEAR = 0.05
#: Evenly spaced ranges that are read of each tensor, and the elements of each.
_RANGES, _ELEMENTS = 4, 1024


def nearness(
    merged: WeightSource, base: WeightSource | None, experts: Mapping[str, WeightSource]
) -> list[str]:
    """Return a sentence for each model that a merge can hardly be told from.

    `base` and `experts` are the aligned models that were merged. Distances are Euclidean, over the
    floating-point tensors that all have in one shape, estimated from evenly spaced ranges. Experts
    that are all the same model say nothing.
    """
    models = {**({} if base is None else {"": base}), **experts}
    if len(models) < 2:  # noqa: PLR2004 - a copy of the only model
        return []
    distances = _distances([*models.values(), merged], base)
    of_merge, names = distances[-1], list(models)
    said = []
    if base is not None:
        usual = distances[0, 1:-1].mean().item()
        if of_merge[0] < _NEAR * usual:
            said.append(_sentence("the base", of_merge[0], usual, "between experts and base"))
    first = len(models) - len(experts)
    usual = _mean_apart(distances[first:-1, first:-1])
    for number in range(first, len(models)):
        if of_merge[number] < _NEAR * usual:
            expert = f"the expert {names[number]!r}"
            said.append(_sentence(expert, of_merge[number], usual, "between experts"))
    return said


def _sentence(model: str, away: torch.Tensor, usual: float, pairs: str) -> str:
    share = f"{away.item() / usual:.1%}".replace("%", " %")
    return f"the merge is nearly {model}: their distance is {share} of the mean distance {pairs}"


def _distances(models: Sequence[WeightSource], base: WeightSource | None) -> torch.Tensor:
    """Return the distances between all models, in fp64; differences are relative to `base`."""
    products = torch.zeros(len(models), len(models), dtype=torch.float64)
    for info, start, stop, weight in _samples(models):
        values = [model.read(info.name, start, stop).double() for model in models]
        origin = values[0]
        rows = [
            row if model.is_delta and model is not base else row - origin
            for model, row in zip(models, values, strict=True)
        ]
        stacked = torch.stack(rows)
        products += weight * stacked @ stacked.mT
    squares = products.diagonal()
    return (squares[:, None] + squares - 2 * products).clamp_min(0).sqrt()


def _samples(models: Sequence[WeightSource]) -> Iterator[tuple[TensorInfo, int, int, float]]:
    """Yield ranges of the tensors that all models have, and what each range stands for."""
    cut = Cut.ELEMENT
    for model in models:
        cut = cut.coarser(model.cut)
    for name, info in models[-1].infos.items():
        shapes = {model.infos[name].shape if name in model.infos else None for model in models}
        if not is_merged(info) or shapes != {info.shape} or not info.numel:
            continue
        unit = _unit(info, cut)
        length = min(info.numel, math.ceil(_ELEMENTS / unit) * unit)
        count = min(_RANGES, info.numel // length)
        for number in range(count):
            start = number * (info.numel // count) // unit * unit
            yield info, start, min(start + length, info.numel), info.numel / (count * length)


def _unit(info: TensorInfo, cut: Cut) -> int:
    """Return how many elements cannot be read apart."""
    if cut is Cut.ELEMENT or (cut is Cut.ROW and len(info.shape) < 2):  # noqa: PLR2004
        return 1
    return math.prod(info.shape[1:]) if cut is Cut.ROW else info.numel


def _mean_apart(distances: torch.Tensor) -> float:
    count = len(distances)
    return distances.sum().item() / max(count * (count - 1), 1)
