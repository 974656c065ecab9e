"""Tell from samples whether a merge is nearly its base, or nearly one of its experts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.merging.execution import group_by_size
from fusion_core.weights.merging.piece import is_merged
from fusion_core.weights.source import Cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_core.weights.source import TensorInfo, WeightSource

    #: a tensor, the start and stop of a range, and how many such ranges it stands for
    _Sample = tuple[TensorInfo, int, int, float]

#: Two models are nearly the same below this fraction of the usual distance. The mean of a hundred
#: unrelated experts is still 0.1 of an expert's distance from their base.
_NEAR = 0.05
#: Evenly spaced ranges that are read of each tensor, and the elements of each range. A model of
#: many tensors has about `_IN_ALL` ranges, but at least one per tensor.
_RANGES, _ELEMENTS, _IN_ALL = 4, 1024, 2048
#: Elements of each model to compare at once: torch's operations cost more than a range's elements.
_AT_ONCE = 2**16


def describe_nearness(
    merged: WeightSource, base: WeightSource | None, experts: Mapping[str, WeightSource]
) -> list[str]:
    """Return a warning for each model that a merge can hardly be told from.

    `base` and `experts` are the aligned models that were merged. Distances are Euclidean, over the
    floating-point tensors that all models have in one shape, and estimated from evenly spaced
    ranges. If all experts are the same model, none is reported. Nor is any for a merge with tensors
    that no model has: the tensors that they share do not tell whether the models are alike.
    """
    if len(experts) + (base is not None) < 2:  # noqa: PLR2004 - a copy of the only model
        return []
    models = [*([] if base is None else [base]), *experts.values()]
    if not merged.infos.keys() <= set().union(*(model.infos for model in models)):
        return []
    distances = _distances([*models, merged], base)
    first = len(models) - len(experts)
    between = distances[first:-1, first:-1]
    usual = between.sum().item() / max(len(experts) * (len(experts) - 1), 1)
    candidates = [
        (f"the expert {name!r}", distances[-1, first + number].item(), usual, "between experts")
        for number, name in enumerate(experts)
    ]
    if base is not None:
        usual = distances[0, 1:-1].mean().item()
        distance = distances[-1, 0].item()
        candidates.insert(0, ("the base", distance, usual, "between experts and base"))
    return [
        f"the merge is nearly {label}: their distance is {100 * distance / usual:.1f} % of the "
        f"mean distance {group}"
        for label, distance, usual, group in candidates
        if distance < _NEAR * usual
    ]


def _distances(models: Sequence[WeightSource], base: WeightSource | None) -> torch.Tensor:
    """Return the distances between all models, in fp64; differences are relative to `base`."""
    products = torch.zeros(len(models), len(models), dtype=torch.float64)
    is_absolute = torch.tensor([not model.is_delta or model is base for model in models])
    for samples in group_by_size(_samples(models), lambda sample: sample[2] - sample[1], _AT_ONCE):
        rows = torch.stack([_read(model, samples) for model in models])
        rows -= torch.where(is_absolute[:, None], rows[0], 0)
        lengths = torch.tensor([stop - start for _, start, stop, _ in samples])
        weights = torch.tensor([weight for *_, weight in samples], dtype=torch.float64)
        products += (rows * weights.repeat_interleave(lengths)) @ rows.mT
    squares = products.diagonal()
    return (squares[:, None] + squares - 2 * products).clamp_min(0).sqrt()


def _read(model: WeightSource, samples: Sequence[_Sample]) -> torch.Tensor:
    # Each by itself, since torch does not join 8-bit floats with other dtypes.
    ranges = [model.read(info.name, start, stop).double() for info, start, stop, _ in samples]
    return torch.cat(ranges)


def _samples(models: Sequence[WeightSource]) -> Iterator[_Sample]:
    """Yield ranges of the tensors that all models have.

    A range starts and stops where the coarsest cut of the models allows it.
    """
    cut = Cut.ELEMENT
    for model in models:
        cut = cut.coarser(model.cut)
    infos = models[-1].infos
    most = min(_RANGES, max(1, _IN_ALL // max(1, len(infos))))
    for name, info in infos.items():
        shapes = {model.infos[name].shape if name in model.infos else None for model in models}
        if not is_merged(info) or shapes != {info.shape} or not info.numel:
            continue
        unit = 1
        if cut is Cut.TENSOR:
            unit = info.numel
        elif cut is Cut.ROW and len(info.shape) > 1:
            unit = math.prod(info.shape[1:])
        length = min(info.numel, math.ceil(_ELEMENTS / unit) * unit)
        count = min(most, info.numel // length)
        for number in range(count):
            start = number * (info.numel // count) // unit * unit
            yield info, start, min(start + length, info.numel), info.numel / (count * length)
