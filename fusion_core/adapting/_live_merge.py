"""A live model whose weights are a linear merge, and the exact gradient of its coefficients.

With W = W0 + sum of lambda_k * tv_k written into plain leaf parameters, the chain rule gives
dL/dlambda_kl = <dL/dW_l, tv_kl>: an ordinary backward pass and one product of a matrix with a
vector a tensor, however many experts there are. No autograd graph runs through the merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from fusion_core.adapting._live import build_live, names_of
from fusion_core.adapting._task_vectors import OnDisk, TaskVectors, WithRows, pieces_of, resident
from fusion_core.weights.merging.execution import on_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.weights import MergedSource

Storage = Literal["fp32", "bf16", "disk"]


@dataclass(frozen=True)
class Leaf:
    """One parameter of the live model with its task vectors."""

    #: canonical names: several where parameters are tied
    names: tuple[str, ...]
    parameter: nn.Parameter
    vectors: TaskVectors

    def merge(self, coefficients: Tensor) -> None:
        """Write base + coefficients @ task vectors into the parameter."""
        self.vectors.merge(coefficients, self.parameter.detach().view(-1))

    def gradient(self) -> Tensor:
        """Return dL/dcoefficients, shape (experts,), and forget the parameter's gradient."""
        gradient, self.parameter.grad = self.parameter.grad, None
        if gradient is None:  # the parameter took no part in the loss
            gradient = torch.zeros_like(self.parameter)
        return self.vectors.project(
            gradient.to_dense().reshape(-1)
        )  # an embedding may make it sparse


class LiveMerge:
    """A pool's live model with every merged parameter as a leaf.

    `merged` is the lazy merge that is started from: base + sum of coefficient * row, the rows being
    what its kernel's `rows(piece)` returns, of shape (experts, ...). Parameters that no expert
    changed are not leaves and need no gradient; floating-point tensors that are not parameters keep
    the coefficients of `merged`. With P the bytes of the merged
    parameters in fp32 and K experts, memory is P for the model, P for its gradient and, unless
    task vectors stay on disk, P for the base and K * P for them (half of that in bf16).
    """

    def __init__(
        self,
        pool: ModelPool[Any],
        merged: MergedSource,
        device: torch.device,
        *,
        storage: Storage = "fp32",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        self.model = build_live(pool, merged, device, dtype=dtype).requires_grad_(False)
        self._on_disk = storage == "disk"
        self.leaves = list(_leaves(pool, merged, self.model, storage))

    @torch.no_grad()
    def merge(self, coefficients: Tensor) -> None:
        """Set the model's weights; `coefficients` has shape (experts, leaves)."""
        columns = coefficients.T.contiguous()  # of strided ones a product takes twice the time
        pairs = zip(self.leaves, columns, strict=True)
        for _ in self._on_all(lambda pair: pair[0].merge(pair[1]), pairs):
            pass

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """Return the gradient of everything back-propagated since, shape (experts, leaves)."""
        return torch.stack(list(self._on_all(Leaf.gradient, self.leaves)), dim=1)

    def _on_all(self, work: Callable[[Any], Any], units: Iterable[Any]) -> Iterator[Any]:
        """Work on leaves one after the other on all cores or, reading from disk, side by side."""
        side_by_side = on_cores if self._on_disk else map
        yield from side_by_side(torch.no_grad()(work), units)


def _leaves(
    pool: ModelPool[Any], merged: MergedSource, model: nn.Module, storage: Storage
) -> Iterator[Leaf]:
    """Yield the leaves, read side by side: a transform's small matrices fill no two cores."""
    kernel: Any = merged.kernel

    def make(found: tuple[nn.Parameter, list[str]]) -> Leaf | None:
        parameter, tied = found
        if not _is_changed(merged, kernel, tied[0]):
            return None
        parameter.data = parameter.detach().contiguous()
        parameter.requires_grad_(True)
        return Leaf(tuple(tied), parameter, _vectors(merged, kernel, tied[0], parameter, storage))

    known = {name: p for name, p in pool.parameters(model).items() if name in merged.infos}
    made = on_cores(make, names_of(known).items())
    yield from (leaf for leaf in made if leaf is not None)


def _is_changed(merged: MergedSource, kernel: WithRows, name: str) -> bool:
    return any(bool(kernel.rows(piece).any()) for _, piece in pieces_of(merged, name))


def _vectors(
    merged: MergedSource, kernel: WithRows, name: str, parameter: nn.Parameter, storage: Storage
) -> TaskVectors:
    if storage == "disk":
        return OnDisk(merged, kernel, name)
    dtype = torch.bfloat16 if storage == "bf16" else parameter.dtype
    return resident(merged, kernel, name, like=parameter, dtype=dtype)
