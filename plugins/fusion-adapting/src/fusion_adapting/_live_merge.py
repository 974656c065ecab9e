"""A live model whose weights are a linear merge, and the exact gradient of its coefficients.

With W = W0 + sum of lambda_k * tv_k written into plain leaf parameters, the chain rule gives
dL/dlambda_kl = <dL/dW_l, tv_kl>: an ordinary backward pass and one product of a matrix with a
vector a tensor, however many experts there are. Where a tensor has a coefficient a row, column or
singular component, the product is that row's, column's or component's. No autograd graph runs
through the merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from fusion_adapting._live import build_live, merged_parameters, names_of
from fusion_adapting._sharing import Grain, sharing_of
from fusion_adapting._task_vectors import (
    OnDisk,
    TaskVectors,
    WithRows,
    pieces_of,
    resident,
    rows_of,
)
from fusion_core.weights import Cut
from fusion_core.weights.merging.execution import on_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from fusion_adapting._sharing import Sharing
    from fusion_core import ModelPool
    from fusion_core.weights import MergedSource, Slot

Storage = Literal["fp32", "bf16", "disk"]


@dataclass(frozen=True)
class Leaf:
    """One parameter of the live model with its task vectors, or a matrix that a parameter holds."""

    #: canonical names: several where parameters are tied
    names: tuple[str, ...]
    parameter: nn.Parameter
    vectors: TaskVectors
    #: names of the tensors that the parameter is: those above, unless it holds several matrices
    tensors: tuple[str, ...]
    #: where in the parameter the matrix is; None if it is the parameter
    slot: Slot | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an expert's coefficients: () of one; of several as `Linear` takes them."""
        return self.vectors.sharing.shape

    @property
    def count(self) -> int:
        """How many coefficients an expert has here."""
        return self.vectors.sharing.count

    def merge(self, coefficients: Tensor) -> None:
        """Write base + coefficients @ task vectors into the parameter; shape (experts, count)."""
        view = self._view(self.parameter.detach().view(-1))
        if view.is_contiguous():
            self.vectors.merge(coefficients, view.view(-1))
            return
        merged = torch.empty_like(view, memory_format=torch.contiguous_format)
        self.vectors.merge(coefficients, merged.view(-1))
        view.copy_(merged)

    def gradient(self) -> Tensor:
        """Return dL/dcoefficients, shape (experts, count)."""
        gradient = self.parameter.grad
        if gradient is None:  # the parameter took no part in the loss
            gradient = torch.zeros_like(self.parameter)
        dense = gradient.to_dense()  # an embedding may make it sparse
        return self.vectors.project(self._view(dense.reshape(-1)).reshape(-1))

    def _view(self, values: Tensor) -> Tensor:
        """Return what is the leaf's of a parameter's values, in the order of its elements."""
        return (
            values
            if self.slot is None
            else self.slot.view(values[self.slot.start : self.slot.stop])
        )


class LiveMerge:
    """A pool's live model with every merged parameter as a leaf, or every matrix that one holds.

    `merged` is the lazy merge that is started from, as `RunContext.merged_matrices` makes it: base
    + sum of coefficient * row, the rows being what its kernel's `rows(piece)` returns, of shape
    (experts, ...). Parameters that no expert
    changed are not leaves and need no gradient; floating-point tensors that are not parameters keep
    the coefficients of `merged`. `grain` says what of a parameter shares a coefficient: all of it,
    what lies at one index of its first dimension (`row`) or of its second (`column`), both, of
    which an entry has the mean (`row+column`), or a singular component of a task vector, of which
    the largest min(rows, columns) / K (`rank`) or all (`component`) have their own and what is left
    has one; coefficients are the columns of one matrix, those of a leaf side by side. With P the
    bytes of the merged parameters in fp32 and K experts, memory is P for the model, P for its
    gradient and, unless task vectors stay on disk, P for the base and K * P for them (half of that
    in bf16); wherever those are, singular vectors take up to 2 * P more by `rank` and 2 * K * P by
    `component`.
    """

    def __init__(  # noqa: PLR0913 - three ways to keep what is merged, each with a default
        self,
        pool: ModelPool[Any],
        merged: MergedSource,
        device: torch.device,
        *,
        storage: Storage = "fp32",
        dtype: torch.dtype = torch.float32,
        grain: Grain = "tensor",
    ) -> None:
        self.dtype = dtype
        whole = pool.layout.packed(merged)
        self.model = build_live(pool, whole, device, dtype=dtype).requires_grad_(False)
        self._on_disk = storage == "disk"
        self.leaves = list(_leaves(pool, merged, self.model, storage, grain))
        #: how many coefficients an expert has: as many as leaves where each has one
        self.columns = sum(leaf.count for leaf in self.leaves)

    @torch.no_grad()
    def merge(self, coefficients: Tensor) -> None:
        """Set the model's weights; `coefficients` has shape (experts, columns)."""
        # Of strided ones a product takes twice the time.
        pairs = ((leaf, own.contiguous()) for leaf, own in self._split(coefficients))
        for _ in self._on_all(lambda pair: pair[0].merge(pair[1]), pairs):
            pass

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """Return the gradient of everything back-propagated since, shape (experts, columns).

        The parameters' gradients are gone then.
        """
        projected = torch.cat(list(self._on_all(Leaf.gradient, self.leaves)), dim=1)
        for leaf in self.leaves:
            leaf.parameter.grad = None
        return projected

    def by_leaf(self, coefficients: Tensor) -> Iterator[tuple[Leaf, Tensor]]:
        """Yield every leaf with its coefficients, of shape (experts, *leaf.shape)."""
        for leaf, own in self._split(coefficients):
            yield leaf, own.reshape(-1, *leaf.shape)

    def _split(self, coefficients: Tensor) -> Iterator[tuple[Leaf, Tensor]]:
        counts = [leaf.count for leaf in self.leaves]
        return zip(self.leaves, coefficients.split_with_sizes(counts, dim=1), strict=True)

    def _on_all(self, work: Callable[[Any], Any], units: Iterable[Any]) -> Iterator[Any]:
        """Work on leaves one after the other on all cores or, reading from disk, side by side."""
        side_by_side = on_cores if self._on_disk else map
        yield from side_by_side(torch.no_grad()(work), units)


def _leaves(
    pool: ModelPool[Any], merged: MergedSource, model: nn.Module, storage: Storage, grain: Grain
) -> Iterator[Leaf]:
    """Yield the leaves, read side by side: a transform's small matrices fill no two cores."""
    kernel: Any = merged.kernel

    def make(place: _Place) -> Leaf | None:
        parameter, name = place.parameter, place.names[0]
        if not _is_changed(merged, kernel, name):
            return None
        parameter.requires_grad_(True)
        info = merged.infos[name]
        sharing = sharing_of(info, grain, lambda: _whole(merged, kernel, name, parameter))
        vectors = _vectors(merged, kernel, sharing, parameter, storage)
        return Leaf(place.names, parameter, vectors, place.tensors, place.slot)

    made = on_cores(make, _places(pool, model))
    yield from (leaf for leaf in made if leaf is not None)


@dataclass(frozen=True)
class _Place:
    """A parameter, or a matrix in one, that may become a leaf."""

    names: tuple[str, ...]
    parameter: nn.Parameter
    tensors: tuple[str, ...]
    slot: Slot | None


def _places(pool: ModelPool[Any], model: nn.Module) -> Iterator[_Place]:
    """Yield the parameters that are merged or, of those that hold several matrices, these."""
    slots = pool.layout.slots
    for parameter, tied in names_of(merged_parameters(pool, model)).items():
        parameter.data = parameter.detach().contiguous()
        tensors = tuple(tied)
        if tied[0] not in slots:
            yield _Place(tensors, parameter, tensors, None)
            continue
        for same in zip(*(slots[name] for name in tied), strict=True):
            names = tuple(slot.name for slot in same)
            yield _Place(names, parameter, tensors, same[0])


def _whole(merged: MergedSource, kernel: WithRows, name: str, parameter: nn.Parameter) -> Tensor:
    """Return a tensor's task vectors, of shape (experts, elements), as its parameter is."""
    ((_, piece),) = pieces_of(merged, name, Cut.TENSOR)
    return rows_of(kernel, piece).to(parameter)


def _is_changed(merged: MergedSource, kernel: WithRows, name: str) -> bool:
    return any(bool(kernel.rows(piece).any()) for _, piece in pieces_of(merged, name))


def _vectors(
    merged: MergedSource,
    kernel: WithRows,
    sharing: Sharing,
    parameter: nn.Parameter,
    storage: Storage,
) -> TaskVectors:
    if storage == "disk":
        return OnDisk(sharing, merged, kernel)
    dtype = torch.bfloat16 if storage == "bf16" else parameter.dtype
    return resident(merged, kernel, sharing, like=parameter, dtype=dtype)
