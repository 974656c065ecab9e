"""A mixture as a source of weights: tensors of several models under new names."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

from fusion_core import Cut, WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    from torch import Tensor

    from fusion_core import TensorInfo
    from fusion_moe.blueprint import Origin


class MixtureSource(WeightSource):
    """Tensors of several sources under new names, some multiplied by a factor."""

    def __init__(self, sources: Mapping[str, WeightSource], origins: Mapping[str, Origin]) -> None:
        """Map each tensor to its origin in one of the sources."""
        self._sources, self._origins = dict(sources), dict(origins)
        self.infos: Mapping[str, TensorInfo] = {
            name: replace(sources[origin.model].infos[origin.name], name=name)
            for name, origin in self._origins.items()
        }
        self.cut = reduce(Cut.coarser, (source.cut for source in self.sources))

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Read a range of the tensor's source."""
        origin = self._origins[name]
        values = self._sources[origin.model].read(origin.name, start, stop)
        return values if origin.factor == 1 else values * origin.factor

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the tensor's source."""
        origin = self._origins[name]
        return self._sources[origin.model].ranges(origin.name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The models, in the order of their first tensors."""
        return tuple(self._sources.values())

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare all sources, or the source of one tensor."""
        if name is None:
            super().prepare(executor)
        elif name in self._origins:
            origin = self._origins[name]
            self._sources[origin.model].prepare(executor, origin.name)

    def describe(self) -> str:
        """Say what it is: the names of its tensors tell the expert by its number."""
        return "the mixture"
