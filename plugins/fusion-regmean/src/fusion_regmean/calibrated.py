"""Closed forms for one layer of a merge whose outputs are to be near to all experts'.

Sums over experts, in fp64: x is what the merge gives the layer, x' what the answer is wanted to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import layer_norm

from fusion_adapting import input_dim
from fusion_regmean.least_squares import LeastSquares
from fusion_regmean.live import is_linear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion_regmean.live import Live

    Solution = tuple[Tensor, Tensor | None]


@dataclass
class Means:
    """Means over positions, by name: what was seen of a layer with one expert's examples."""

    count: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)

    def add(self, count: int, sums: dict[str, Tensor]) -> None:
        """Add sums over so many positions."""
        self.count += count
        for name, each in sums.items():
            self.totals[name] = self.totals[name].add_(each) if name in self.totals else each

    def __getitem__(self, name: str) -> Tensor:
        return self.totals[name].cpu().double() / self.count


class CalibratedLinear:
    """A linear layer: least squares for the weight, then means of what is left for the bias."""

    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        self._dim = 1 if input_dim(layer) == 1 else 0
        self._squares = LeastSquares(weight, self._dim)
        self._given = torch.zeros(weight.shape[self._dim], dtype=torch.float64)
        self._answers = torch.zeros(weight.shape[1 - self._dim], dtype=torch.float64)
        self._scale = 0.0

    @staticmethod
    def see(_layer: Any, given: Tensor, wanted: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
        """Return the sums of x and x', both of shape (positions, inputs)."""
        products = {"moment": given.T @ given, "cross": wanted.T @ given}
        return products | {"given": given.sum(0), "wanted": wanted.sum(0)}

    def add(self, weight: Tensor, bias: Tensor | None, seen: Means) -> None:
        """Add an expert, its moment scaled to norm 1; one whose inputs are zeros adds nothing."""
        moment = seen["moment"]
        norm = float(moment.norm())
        if not norm:
            return
        self._squares.add(weight, moment / norm, seen["cross"] / norm)
        self._given += seen["given"] / norm
        self._answers += self._answer(weight, seen["wanted"], bias) / norm
        self._scale += 1 / norm

    def solve(self, name: str, weight: Tensor, bias: Tensor | None, ridge: float) -> Solution:
        """Return weight and bias, pulled towards these."""
        inputs = weight.shape[self._dim]
        self._squares.add(weight, ridge * torch.eye(inputs, dtype=torch.float64))
        solved = self._squares.solve(name)
        if bias is None:
            return solved, None
        left = self._answers - self._answer(solved, self._given, None) + ridge * bias.double()
        return solved, (left / (self._scale + ridge)).to(bias.dtype)

    def _answer(self, weight: Tensor, inputs: Tensor, bias: Tensor | None) -> Tensor:
        turned = weight if self._dim == 1 else weight.mT
        return turned.double() @ inputs + (0 if bias is None else bias.double())


class CalibratedNormalisation:
    """A layer normalisation: two unknowns a feature, what multiplies z and what is added."""

    def __init__(self, _layer: nn.Module, weight: Tensor) -> None:
        zeros = torch.zeros_like(weight, dtype=torch.float64)
        self._energy, self._mean, self._count = zeros, zeros.clone(), 0
        self._for_weight, self._for_bias = zeros.clone(), zeros.clone()

    @staticmethod
    def see(layer: Any, given: Tensor, _wanted: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
        """Return the sums of the merge's normalised inputs z, of shape (positions, features)."""
        plain = layer_norm(given, layer.normalized_shape, eps=layer.eps)
        return {"energy": plain.square().sum(0), "mean": plain.sum(0)}

    def add(self, weight: Tensor, bias: Tensor, seen: Means) -> None:
        """Add an expert."""
        energy, mean = seen["energy"], seen["mean"]
        self._energy += energy
        self._mean += mean
        self._count += 1
        self._for_weight += energy * weight + mean * bias
        self._for_bias += mean * weight + bias

    def solve(self, _name: str, weight: Tensor, bias: Tensor, ridge: float) -> Solution:
        """Return weight and bias, pulled towards these."""
        energy, for_weight = self._energy + ridge, self._for_weight + ridge * weight
        count, for_bias = self._count + ridge, self._for_bias + ridge * bias
        determinant = energy * count - self._mean.square()
        first = (count * for_weight - self._mean * for_bias) / determinant
        second = (energy * for_bias - self._mean * for_weight) / determinant
        return first.to(weight.dtype), second.to(bias.dtype)


@dataclass(frozen=True)
class Layer:
    """A layer of a live model that has a closed form, and the names of what is solved of it."""

    module: nn.Module
    weight: str
    #: None where it has none, it is not merged, or another layer shares the weight
    bias: str | None

    @property
    def sums(self) -> type[Any]:
        """The class of its sums."""
        return CalibratedLinear if is_linear(self.module) else CalibratedNormalisation


def is_calibrated(module: nn.Module) -> bool:
    """Tell whether a layer has a closed form here."""
    return is_linear(module) or (
        isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
    )


def layers_of(live: Live, names: Sequence[str]) -> list[Layer]:
    """Return the layers with these weights; no normalisation whose bias is not merged with it."""
    found = []
    for name in names:
        modules: list[Any] = [each for each, own in live.layers.items() if own == name]
        bias = live.name_of(modules[0].bias) if len(modules) == 1 else None
        if bias is not None or is_linear(modules[0]):
            found.append(Layer(modules[0], name, bias))
    return found
