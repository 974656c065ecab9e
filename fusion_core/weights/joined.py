"""Tensors of other sources under new names."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

from fusion_core.weights.source import Cut, WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    import torch

    from fusion_core.weights.origin import Origin
    from fusion_core.weights.source import LowRank, TensorInfo


class JoinedSource(WeightSource):
    """Tensors of several sources, under new names."""

    def __init__(
        self, sources: Mapping[str, WeightSource], tensors: Mapping[str, tuple[str, str]]
    ) -> None:
        """`tensors` maps each new name to the name of a source, and to the tensor's name there."""
        self._sources, self._tensors = dict(sources), dict(tensors)
        self.cut = reduce(Cut.coarser, (source.cut for source in self.sources))
        self.infos: Mapping[str, TensorInfo] = {
            name: replace(self._sources[source].infos[old], name=name)
            for name, (source, old) in self._tensors.items()
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor of its source."""
        source, old = self._tensors[name]
        return self._sources[source].read(old, start, stop)

    def file_range(self, name: str, start: int) -> tuple[int, int] | None:
        """Return the range in a file of the tensor's source."""
        source, old = self._tensors[name]
        return self._sources[source].file_range(old, start)

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the tensor's source."""
        source, old = self._tensors[name]
        return self._sources[source].ranges(old)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """All sources, in the order in which they were given."""
        return tuple(self._sources.values())

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare all sources, or the source of one tensor."""
        if name is None:
            super().prepare(executor)
        elif name in self._tensors:
            source, old = self._tensors[name]
            self._sources[source].prepare(executor, old)

    def describe(self) -> str:
        """Name the sources."""
        return ", ".join(source.describe() for source in self.sources)


class RenamedSource(JoinedSource):
    """Some tensors of another source, under other names."""

    def __init__(self, source: WeightSource, names: Mapping[str, str]) -> None:
        """`names` maps new names to names in `source`; other tensors are left out."""
        super().__init__({"": source}, {new: ("", old) for new, old in names.items()})
        self._source, self._names = source, dict(names)
        self.is_delta = source.is_delta

    @property
    def names(self) -> Mapping[str, str]:
        """The names in the other source, by the new names."""
        return self._names

    def low_rank(self, name: str) -> LowRank | None:
        """Return the factors of the other source."""
        return self._source.low_rank(self._names[name])

    def with_base(self, base: WeightSource) -> RenamedSource:
        """Return the same tensors of differences from other weights of their base."""
        old_names = {old: new for new, old in self._names.items() if new in base.infos}
        return RenamedSource(self._source.with_base(RenamedSource(base, old_names)), self._names)

    @property
    def origin(self) -> Origin | None:
        """The origin of the other source."""
        return self._source.origin
