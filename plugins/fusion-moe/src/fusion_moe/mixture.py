"""A mixture as a source of weights: tensors of several models under new names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_core.weights import JoinedSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_core import WeightSource
    from fusion_moe.blueprint import Origin


class MixtureSource(JoinedSource):
    """Tensors of several sources under new names, some multiplied by a factor."""

    def __init__(self, sources: Mapping[str, WeightSource], origins: Mapping[str, Origin]) -> None:
        """Map each tensor to its origin in one of the sources."""
        tensors = {name: (origin.model, origin.name) for name, origin in origins.items()}
        super().__init__(sources, tensors)
        self._factors = {name: origin.factor for name, origin in origins.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Read a range of the tensor's source."""
        values, factor = super().read(name, start, stop), self._factors[name]
        return values if factor == 1 else values * factor

    def describe(self) -> str:
        """Say what it is: the names of its tensors tell the expert by its number."""
        return "the mixture"
