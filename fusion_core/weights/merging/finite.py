"""Find NaN and infinity in whole models: read everything once, on an executor, and count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.progress import Progress
from fusion_core.weights.merging.execution import run_all
from fusion_core.weights.merging.piece import is_finite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    from fusion_core.weights.source import WeightSource

    Unit = tuple[str, WeightSource, str, int, int]


@dataclass(frozen=True, slots=True)
class BadTensor:
    """A tensor of a model that holds NaN or infinity, and how many."""

    model: str
    tensor: str
    nan: int
    infinite: int


def bad_tensors(
    models: Mapping[str, WeightSource], executor: Executor, *, progress: Progress | None = None
) -> list[BadTensor]:
    """Return every tensor that is not finite throughout, in the order of models and tensors."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    total = sum(info.nbytes for each in models.values() for info in each.infos.values())
    with (progress or Progress()).track("scan", total=total, unit="B") as advance:
        for (model, tensor), nan, infinite, size in run_all(executor, _counted, _units(models)):
            advance(size)
            if nan or infinite:
                before = found.get((model, tensor), (0, 0))
                found[model, tensor] = (before[0] + nan, before[1] + infinite)
    return [BadTensor(*place, *counts) for place, counts in found.items()]


def _units(models: Mapping[str, WeightSource]) -> Iterator[Unit]:
    for model, source in models.items():
        for name, info in source.infos.items():
            if info.dtype.is_floating_point:
                for start, stop in source.ranges(name):
                    yield model, source, name, start, stop


def _counted(unit: Unit) -> tuple[tuple[str, str], int, int, int]:
    model, source, name, start, stop = unit
    values = source.read(name, start, stop)
    if is_finite(values):
        return (model, name), 0, 0, values.nbytes
    nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
    return (model, name), nan, infinite, values.nbytes
