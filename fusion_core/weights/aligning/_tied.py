"""Tied weights: one matrix that a model uses twice, and that savers write once or twice.

Whether `lm_head.weight` is a tensor of its own is not in its name, and a configuration may be wrong
about it; so the proof is the content. Read only where one model lacks what another has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion_core.weights.source import Cut, memory_of

if TYPE_CHECKING:
    from fusion_core.weights.source import WeightSource

_PROBE = 256


class Copies:
    """Which tensors of a model are exact copies of others; a tensor of one value is not."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._probes: dict[str, bytes] = {}

    def of(self, name: str) -> list[str]:
        """Return the other tensors that hold the same as one: none for lazy or delta sources."""
        if self._source.sources or self._source.is_delta:
            return []
        info = self._source.infos[name]
        same = (
            other
            for other, each in self._source.infos.items()
            if other != name and each.shape == info.shape and each.dtype == info.dtype
        )
        return [other for other in same if self._are_equal(name, other)]

    def _are_equal(self, one: str, other: str) -> bool:
        if not self._probe(one) or self._probe(one) != self._probe(other):
            return False
        read, info = self._source.read, self._source.infos[one]
        return all(
            torch.equal(read(one, *span), read(other, *span)) for span in Cut.ELEMENT.ranges(info)
        )

    def _probe(self, name: str) -> bytes:
        """Return the first bytes of a tensor; nothing if they are all of one value."""
        if name not in self._probes:
            stop = min(_PROBE, self._source.infos[name].numel)
            values = self._source.read(name, 0, stop).contiguous()
            varied = bool((values != values[:1]).any())
            self._probes[name] = bytes(memory_of(values)) if varied else b""
        return self._probes[name]
