"""Tensors of several sources under new names, some times a factor."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import JoinedSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion_core import WeightSource


class StackedSource(JoinedSource):
    """Tensors of several sources under new names, some times a factor in fp32 or fp64."""

    def __init__(
        self,
        sources: Mapping[str, WeightSource],
        tensors: Mapping[str, tuple[str, str]],
        factors: Mapping[str, float],
    ) -> None:
        """`factors` are by new names; integers stay as they are."""
        super().__init__(sources, tensors)
        self._factors = {
            name: factor
            for name, factor in factors.items()
            if factor != 1 and self.infos[name].dtype.is_floating_point
        }
        self.infos = {
            name: replace(info, dtype=torch.promote_types(info.dtype, torch.float32))
            if name in self._factors
            else info
            for name, info in self.infos.items()
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range from the tensor's source."""
        values = super().read(name, start, stop)
        if name not in self._factors:
            return values
        return values.to(self.infos[name].dtype) * self._factors[name]

    def describe(self) -> str:
        """Name the sources."""
        return f"layers of {super().describe()}"
