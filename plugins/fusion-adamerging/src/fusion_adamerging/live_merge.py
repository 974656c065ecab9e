"""A live model whose weights are a linear merge, and the exact gradient of its coefficients.

With W = W0 + sum of lambda_k * tv_k written into plain leaf parameters, the chain rule gives
dL/dlambda_kl = <dL/dW_l, tv_kl>: one ordinary backward pass and one product of a matrix with a
vector a tensor, however many experts there are. No autograd graph runs through the merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights import assemble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from fusion_core.model_pool import ModelPool


@dataclass(frozen=True)
class Leaf:
    """One parameter of the live model with its task vectors."""

    #: canonical names: several where parameters are tied
    names: tuple[str, ...]
    parameter: nn.Parameter
    #: the base's values, shape (elements,)
    base: Tensor
    #: shape (experts, elements)
    task_vectors: Tensor

    def merge(self, coefficients: Tensor) -> None:
        """Write base + coefficients @ task_vectors into the parameter."""
        merged = torch.addmv(self.base, self.task_vectors.T, coefficients)
        self.parameter.copy_(merged.view_as(self.parameter))

    def gradient(self) -> Tensor:
        """Return dL/dcoefficients, shape (experts,), and forget the parameter's gradient."""
        gradient, self.parameter.grad = self.parameter.grad, None
        if gradient is None:  # the parameter took no part in the loss
            return self.task_vectors.new_zeros(len(self.task_vectors))
        return self.task_vectors @ gradient.reshape(-1)


class LiveMerge:
    """The base's live model with every merged parameter as a leaf.

    Parameters that no expert changed stay as they are and need no gradient. Memory: the model with
    its gradient, the base, and one copy of the parameters an expert.
    """

    def __init__(
        self, pool: ModelPool[Any], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        assert pool.base is not None  # noqa: S101 - the spec declares needs_base
        self.model = pool.build(pool.base).to(device=device, dtype=dtype).eval()
        self.model.requires_grad_(False)
        self.leaves = list(_leaves(pool, self.model))

    @torch.no_grad()
    def merge(self, coefficients: Tensor) -> None:
        """Set the model's weights; `coefficients` has shape (experts, leaves)."""
        for leaf, column in zip(self.leaves, coefficients.T, strict=True):
            leaf.merge(column)

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """Return the gradient of everything back-propagated since, shape (experts, leaves)."""
        return torch.stack([leaf.gradient() for leaf in self.leaves], dim=1)


def _leaves(pool: ModelPool[Any], model: nn.Module) -> Iterator[Leaf]:
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in pool.parameters(model).items():
        if name in pool.reference.infos:
            names.setdefault(parameter, []).append(name)
    for parameter, tied in names.items():
        rows = [_flat(source, tied[0], parameter) for source in pool.experts.values()]
        base = _flat(pool.reference, tied[0], parameter)
        task_vectors = torch.stack(rows) - base
        if task_vectors.any():
            parameter.requires_grad_(True)
            yield Leaf(tuple(tied), parameter, base, task_vectors)


def _flat(source: Any, name: str, like: Tensor) -> Tensor:  # noqa: ANN401 - a WeightSource
    return assemble(source, name).to(device=like.device, dtype=like.dtype)
