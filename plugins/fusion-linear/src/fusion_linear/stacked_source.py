"""Tensors of several sources under new names."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import torch

from fusion_core import Cut
from fusion_core.weights import WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    from fusion_core import TensorInfo


class StackedSource(WeightSource):
    """Tensors of several sources under new names, some times a factor in fp32 or fp64."""

    def __init__(
        self,
        sources: Mapping[str, WeightSource],
        origins: Mapping[str, tuple[str, str]],
        factors: Mapping[str, float],
    ) -> None:
        """Map each tensor to the name of its source and its name there (`origins`)."""
        self._sources, self._origins = dict(sources), dict(origins)
        infos = {
            name: replace(sources[source].infos[there], name=name)
            for name, (source, there) in self._origins.items()
        }
        self._factors = {
            name: factor
            for name, factor in factors.items()
            if factor != 1 and infos[name].dtype.is_floating_point
        }
        self.infos: Mapping[str, TensorInfo] = {
            name: replace(info, dtype=torch.promote_types(info.dtype, torch.float32))
            if name in self._factors
            else info
            for name, info in infos.items()
        }
        self.cut = reduce(Cut.coarser, (source.cut for source in self.sources))

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range from the tensor's source."""
        source, there = self._origins[name]
        values = self._sources[source].read(there, start, stop)
        if name not in self._factors:
            return values
        return values.to(self.infos[name].dtype) * self._factors[name]

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the tensor's source."""
        source, there = self._origins[name]
        return self._sources[source].ranges(there)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The sources, in the order of their first tensors."""
        return tuple(self._sources.values())

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare all sources, or the source of one tensor."""
        if name is None:
            super().prepare(executor)
        elif name in self._origins:
            source, there = self._origins[name]
            self._sources[source].prepare(executor, there)

    def describe(self) -> str:
        """Name the sources."""
        return f"layers of {', '.join(source.describe() for source in self.sources)}"
