"""Find NaN and infinity in whole models: read every tensor once on an executor, and count."""

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
    """A tensor of a model that holds NaN or infinity, and how many of each."""

    model: str
    tensor: str
    nan: int
    infinite: int


def find_bad_tensors(
    models: Mapping[str, WeightSource], executor: Executor, *, progress: Progress | None = None
) -> list[BadTensor]:
    """Return every tensor with a value that is not finite, in the order of models and tensors."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    total = sum(info.nbytes for source in models.values() for info in source.infos.values())
    with (progress or Progress()).track("scan", total=total, unit="B") as advance:
        for tensor, nan, infinite, size in run_all(executor, _count, _units(models)):
            advance(size)
            if nan or infinite:
                nan_before, infinite_before = counts.get(tensor, (0, 0))
                counts[tensor] = (nan_before + nan, infinite_before + infinite)
    return [BadTensor(*tensor, *count) for tensor, count in counts.items()]


def _units(models: Mapping[str, WeightSource]) -> Iterator[Unit]:
    for model, source in models.items():
        for name, info in source.infos.items():
            if info.dtype.is_floating_point:
                for start, stop in source.ranges(name):
                    yield model, source, name, start, stop


def _count(unit: Unit) -> tuple[tuple[str, str], int, int, int]:
    model, source, name, start, stop = unit
    values = source.read(name, start, stop)
    if is_finite(values):
        return (model, name), 0, 0, values.nbytes
    nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
    return (model, name), nan, infinite, values.nbytes
