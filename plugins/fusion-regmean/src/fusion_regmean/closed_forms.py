"""Closed forms for one layer of a merge, whose outputs approach those of all experts.

Sums are over experts, in fp64. `inputs` (x) are the layer's inputs in the merge. The layer should
approach the outputs of the expert's layer for other inputs, the `targets` (x').
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import layer_norm

from fusion_adapting import input_dim
from fusion_regmean.least_squares import LeastSquares
from fusion_regmean.live_model import is_linear

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

    from fusion_regmean.blocks import Block
    from fusion_regmean.live_model import LiveModel

    Solution = tuple[Tensor, Tensor | None]


@dataclass
class Means:
    """Means over positions, by name, of one layer on one expert's examples."""

    count: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)

    def add(self, count: int, sums: dict[str, Tensor]) -> None:
        """Add sums over `count` positions."""
        self.count += count
        for name, values in sums.items():
            self.totals[name] = self.totals[name].add_(values) if name in self.totals else values

    def __getitem__(self, name: str) -> Tensor:
        return self.totals[name].cpu().double() / self.count


class CalibratedLinear:
    """A linear layer: least squares for the weight, then the mean remainder for the bias."""

    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        self._dim = 1 if input_dim(layer) == 1 else 0
        self._squares = LeastSquares(weight, self._dim)
        self._inputs = torch.zeros(weight.shape[self._dim], dtype=torch.float64)
        self._answers = torch.zeros(weight.shape[1 - self._dim], dtype=torch.float64)
        self._scale = 0.0

    @staticmethod
    def sums_of(_layer: Any, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
        """Return sums over the positions of x and x', both of shape (positions, inputs)."""
        products = {"moment": inputs.T @ inputs, "cross": targets.T @ inputs}
        return products | {"inputs": inputs.sum(0), "targets": targets.sum(0)}

    def add(self, weight: Tensor, bias: Tensor | None, means: Means) -> None:
        """Add an expert, its moment scaled to norm 1, unless its inputs are all zero."""
        moment = means["moment"]
        norm = float(moment.norm())
        if not norm:
            return
        self._squares.add(weight, moment / norm, means["cross"] / norm)
        self._inputs += means["inputs"] / norm
        self._answers += self._outputs(weight, means["targets"], bias) / norm
        self._scale += 1 / norm

    def solve(self, name: str, weight: Tensor, bias: Tensor | None, ridge: float) -> Solution:
        """Return weight and bias, pulled towards the given ones."""
        width = weight.shape[self._dim]
        self._squares.add(weight, ridge * torch.eye(width, dtype=torch.float64))
        solved = self._squares.solve(name, ridge)
        if bias is None:
            return solved, None
        rest = self._answers - self._outputs(solved, self._inputs, None) + ridge * bias.double()
        return solved, (rest / (self._scale + ridge)).to(bias.dtype)

    def _outputs(self, weight: Tensor, inputs: Tensor, bias: Tensor | None) -> Tensor:
        turned = weight if self._dim == 1 else weight.mT
        return turned.double() @ inputs + (0 if bias is None else bias.double())


class CalibratedNormalisation:
    """A layer normalisation: two unknowns per feature, the weight and the bias."""

    def __init__(self, _layer: nn.Module, weight: Tensor) -> None:
        zeros = torch.zeros_like(weight, dtype=torch.float64)
        self._energy, self._mean, self._count = zeros, zeros.clone(), 0
        self._for_weight, self._for_bias = zeros.clone(), zeros.clone()

    @staticmethod
    def sums_of(layer: Any, inputs: Tensor, _targets: Tensor) -> dict[str, Tensor]:  # noqa: ANN401
        """Return sums over the merge's normalised inputs, of shape (positions, features)."""
        normalised = layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        return {"energy": normalised.square().sum(0), "mean": normalised.sum(0)}

    def add(self, weight: Tensor, bias: Tensor, means: Means) -> None:
        """Add an expert."""
        energy, mean = means["energy"], means["mean"]
        self._energy += energy
        self._mean += mean
        self._count += 1
        self._for_weight += energy * weight + mean * bias
        self._for_bias += mean * weight + bias

    def solve(self, _name: str, weight: Tensor, bias: Tensor, ridge: float) -> Solution:
        """Return weight and bias, pulled towards the given ones."""
        energy, for_weight = self._energy + ridge, self._for_weight + ridge * weight
        count, for_bias = self._count + ridge, self._for_bias + ridge * bias
        determinant = energy * count - self._mean.square()
        solved_weight = (count * for_weight - self._mean * for_bias) / determinant
        solved_bias = (energy * for_bias - self._mean * for_weight) / determinant
        return solved_weight.to(weight.dtype), solved_bias.to(bias.dtype)


@dataclass(frozen=True)
class Layer:
    """A layer of a live model that has a closed form, and the names of its parameters."""

    module: nn.Module
    weight: str
    #: None if there is no bias, it is not solved, or another layer shares the weight
    bias: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of weight and bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def without(self, names: Collection[str]) -> Layer | None:
        """Return the part of the layer that can be solved if these parameters stay."""
        is_stuck = self.bias in names and not is_linear(self.module)
        if self.weight in names or is_stuck:
            return None
        return replace(self, bias=None) if self.bias in names else self

    @property
    def closed_form(self) -> type[Any]:
        """The class that sums and solves the layer."""
        return CalibratedLinear if is_linear(self.module) else CalibratedNormalisation


def has_closed_form(module: nn.Module) -> bool:
    """Return whether this module can solve a layer."""
    return is_linear(module) or (
        isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
    )


def layers_of(live: LiveModel, blocks: Sequence[Block]) -> list[list[Layer]]:
    """Return the layers of each block, except normalisations whose bias is not merged.

    A weight that serves another module, too, such as embeddings tied to the head, has no closed
    form: the other module would change.
    """
    others = [module for module in live.model.modules() if module not in live.layers]
    tied = {parameter for module in others for parameter in module.parameters(recurse=False)}

    def layer_of(name: str) -> Layer | None:
        modules: list[Any] = [module for module, weight in live.layers.items() if weight == name]
        bias = live.name_of(modules[0].bias) if len(modules) == 1 else None
        can_be_solved = live.parameters[name] not in tied and (bias or is_linear(modules[0]))
        return Layer(modules[0], name, bias) if can_be_solved else None

    return [[*filter(None, map(layer_of, block.layers))] for block in blocks]
