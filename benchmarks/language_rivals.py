"""Rivals of a merge: one adapter that learns from the same teachers, prompts and steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from study_parts import Distilled

from fusion_adamerging.config import AdaMergingConfig
from fusion_adapting import Learnable
from fusion_core.weights import is_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

#: The scale of an adapter's product, as of the experts' own.
_SCALE = 2.0


class AdapterConfig(AdaMergingConfig):
    """The options of a search, and the adapter's rank."""

    rank: int = 64
    """The rank; by default as many numbers as four experts of rank 16 have."""


class DistilledAdapter(Distilled):
    """A search for one adapter on all matrices, which starts at zero."""

    config_class: Any = AdapterConfig
    config: Any

    def make_learned(self, parameters: Mapping[str, nn.Parameter]) -> Learnable:
        """Return an adapter of the matrices; other parameters stay as they are."""
        return _Adapter(parameters, self.config.rank)


class _Adapter(Learnable):
    """Factors of an update of every matrix: right ones random, left ones zero, as in LoRA."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], rank: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._parameters = parameters
        self._start: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            if is_matrix(parameter.shape):
                rows, columns = parameter.shape
                bound = columns**-0.5
                right = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
                self._start[name] = parameter.detach().clone()
                self.tensors |= {f"{name}/left": torch.zeros(rows, rank), f"{name}/right": right}

    def write_weights(self) -> None:
        """Add the products to the start."""
        for name, start in self._start.items():
            left, right = self._factors(name)
            with torch.no_grad():
                self._parameters[name].copy_(start).addmm_(left, right, alpha=_SCALE)

    def collect(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Apply the chain rule to the gradients of the matrices."""
        for name in self._start:
            gradient = self._parameters[name].grad
            assert gradient is not None
            whole = _SCALE * summed(gradient)
            left, right = self._factors(name)
            left.grad, right.grad = whole @ right.T, left.T @ whole
        for parameter in self._parameters.values():
            parameter.grad = None

    def shown(self) -> Mapping[str, float]:
        """Return no figures."""
        return {}

    def _factors(self, name: str) -> tuple[Tensor, Tensor]:
        return self.tensors[f"{name}/left"], self.tensors[f"{name}/right"]
