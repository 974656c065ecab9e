"""A source as the bytes of one safetensors file, in order: for files beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.weights.merging.execution import run_all
from fusion_core.weights.reading.format import build_header
from fusion_core.weights.source import check_values, memory_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

    from fusion_core.weights.source import WeightSource

    Span = tuple[str, int, int]


def serialised(source: WeightSource, executor: Executor) -> Iterator[bytes]:
    """Yield the header, then every tensor, computed range by range on an executor."""
    header, _ = build_header(source.infos.values(), {})
    yield header
    yield from run_all(executor, _Read(source), _spans(source, executor))


@dataclass(frozen=True)
class _Read:
    source: WeightSource

    def __call__(self, span: Span) -> bytes:
        name, start, stop = span
        values = self.source.read(*span).contiguous()
        check_values(values, self.source.infos[name], (start, stop), self.source)
        return bytes(memory_of(values))


def _spans(source: WeightSource, executor: Executor) -> Iterator[Span]:
    source.prepare(executor)
    for name in source.infos:
        source.prepare(executor, name)
        for start, stop in source.ranges(name):
            yield name, start, stop
