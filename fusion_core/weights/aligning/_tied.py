"""Tied weights: one matrix that a model uses twice, and that savers write once or twice.

Neither the name of `lm_head.weight` nor a configuration proves that it is tied, so the content
decides. It is read only where one model lacks a tensor that another has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights.source import Cut, memory_of

if TYPE_CHECKING:
    from fusion_core.weights.source import WeightSource

_PROBE = 256


class Copies:
    """Finds tensors of a model that are exact copies of others; a constant tensor is no copy."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._probes: dict[str, bytes] = {}

    def of(self, name: str) -> list[str]:
        """Return the names of a tensor's copies; none for lazy or delta sources."""
        source = self._source
        if source.sources or source.is_delta:
            return []
        info = source.infos[name]
        return [
            other
            for other, candidate in source.infos.items()
            if other != name
            and (candidate.shape, candidate.dtype) == (info.shape, info.dtype)
            and self._are_equal(name, other)
        ]

    def _are_equal(self, one: str, other: str) -> bool:
        if not self._probe(one) or self._probe(one) != self._probe(other):
            return False
        read, info = self._source.read, self._source.infos[one]
        return all(
            torch.equal(read(one, *span), read(other, *span)) for span in Cut.ELEMENT.ranges(info)
        )

    def _probe(self, name: str) -> bytes:
        """Return the first bytes of a tensor; empty if these values are all the same."""
        if name not in self._probes:
            stop = min(_PROBE, self._source.infos[name].numel)
            values = self._source.read(name, 0, stop).contiguous()
            is_constant = not (values != values[:1]).any()
            self._probes[name] = b"" if is_constant else bytes(memory_of(values))
        return self._probes[name]
