"""A live model whose weights are a linear merge, and the exact gradient of its coefficients.

The merge W = W0 + sum of lambda_k * tv_k is written into plain leaf parameters. By the chain rule,
dL/dlambda_kl = <dL/dW_l, tv_kl>. So the gradient takes an ordinary backward pass and one
matrix-vector product per tensor, for any number of experts. With one coefficient per row, column or
singular component, the product is taken per row, column or component. No autograd graph runs
through the merge.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from fusion_adapting._collecting import collect_in_layers, find_owners
from fusion_adapting._factored import Factored, factorise
from fusion_adapting._live import build_live, group_tied_names, live_dtype, merged_parameters
from fusion_adapting._row_file import RowFile
from fusion_adapting._sharing import Grain, choose_sharing
from fusion_adapting._task_vectors import OnDisk, Resident, TaskVectors, pieces_of, rows_of
from fusion_core.weights import Cut
from fusion_core.weights.merging.execution import map_on_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import Tensor, nn

    from fusion_adapting._sharing import Sharing
    from fusion_core import ModelPool
    from fusion_core.weights import MergedSource, Slot

    #: stores the task vectors of a parameter, or of one matrix in it
    Store = Callable[[Sharing, nn.Parameter], TaskVectors]

#: `auto`: each as factors if its rank is so low that those of as many experts are smaller than the
#: matrix, else in fp32.
Storage = Literal["auto", "fp32", "bf16", "disk"]


@dataclass(frozen=True)
class Leaf:
    """A parameter of the live model, or one matrix in it, with its task vectors."""

    #: canonical names; several if parameters are tied
    names: tuple[str, ...]
    parameter: nn.Parameter
    vectors: TaskVectors
    #: names of the parameter's tensor; differ from `names` if it holds several matrices
    tensors: tuple[str, ...]
    #: of shape (experts, count): layers add to its gradient, as `CollectingLinear` does
    collected: Tensor
    #: the position of the matrix in the parameter; None if it is the whole parameter
    slot: Slot | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an expert's coefficients: () for one, otherwise as `Linear` takes them."""
        return self.vectors.sharing.shape

    @property
    def count(self) -> int:
        """The number of coefficients per expert."""
        return self.vectors.sharing.count

    def merge(self, coefficients: Tensor) -> None:
        """Write base + coefficients @ task vectors into the parameter; shape (experts, count)."""
        view = self._view(self.parameter.detach().view(-1))
        if view.is_contiguous() and view.dtype is coefficients.dtype:
            self.vectors.merge(coefficients, view.view(-1))
            return
        merged = coefficients.new_empty(view.shape)
        self.vectors.merge(coefficients, merged.view(-1))
        view.copy_(merged)

    def gradient(self) -> Tensor:
        """Return dL/dcoefficients, shape (experts, count)."""
        parts = [] if self.collected.grad is None else [self.collected.grad]
        if self.parameter.grad is not None:
            dense = self.parameter.grad.to_dense()  # an embedding may make it sparse
            dense = dense.to(self.collected)  # the weight may be in bf16
            parts.append(self.vectors.project(self._view(dense.reshape(-1)).reshape(-1)))
        return sum(parts, start=torch.zeros_like(self.collected))

    def _view(self, values: Tensor) -> Tensor:
        """Return the leaf's part of a parameter's flat values, in the order of its elements."""
        if self.slot is None:
            return values
        return self.slot.view(values[self.slot.start : self.slot.stop])


class LiveMerge:
    """A pool's live model whose merged parameters, or the matrices in them, are leaves.

    `merged` is the initial lazy merge from `RunContext.merged_matrices`: base + sum of coefficient
    * row, with the rows that its kernel's `rows(piece)` returns, of shape (experts, ...).
    Parameters that no expert changed are not leaves and need no gradient. Floating-point tensors
    that are not parameters keep the coefficients of `merged`.

    `grain` says which elements share a coefficient: the whole parameter (`tensor`), one index of
    its first dimension (`row`) or second (`column`), or both, with their mean (`row+column`). With
    `rank`, the min(rows, columns) / K largest singular components of a task vector have one each,
    and the remainder has one. With `component`, all components have one. Coefficients are the
    columns of one matrix, those of a leaf next to each other.

    Memory, with P the bytes of the merged parameters in fp32 and K experts: P for the model and P
    for its gradient. Task vectors in memory add P for the base (half of that if it is stored in 16
    bits) and K * P for the vectors (half of that in bf16, and less than P as factors, see
    `Storage`). Linear layers whose task vectors are factors need no gradient (see
    `CollectingLinear`). If all passes run under bf16 autocast (`bf16_passes`), their weights are
    held in bf16, to which autocast would round them. Singular vectors add up to 2 * P for `rank`
    and 2 * K * P for `component`, even if task vectors stay on disk.

    With the storage `disk`, every step reads the experts. If their task vectors take long to
    compute, name a directory in `rows_in`. They are then written to a temporary file there, in
    K * P bytes, and every step reads that.
    """

    def __init__(  # noqa: PLR0913 - four options of the storage, each with a default
        self,
        pool: ModelPool[Any],
        merged: MergedSource,
        device: torch.device,
        *,
        storage: Storage = "auto",
        dtype: torch.dtype | None = None,
        grain: Grain = "tensor",
        rows_in: Path | None = None,
        bf16_passes: bool = False,
    ) -> None:
        self.dtype = dtype = dtype or live_dtype(pool)
        packed = pool.layout.pack(merged)
        self.model = build_live(pool, packed, device, dtype=dtype).requires_grad_(False)
        self._on_disk = storage == "disk"
        store = _choose_storage(merged, storage, dtype, rows_in)
        self.leaves: list[Leaf] = []
        owners = find_owners(self.model)
        for leaf in _make_leaves(pool, merged, self.model, grain, store):
            weight, vectors = leaf.parameter, leaf.vectors
            if isinstance(vectors, Factored):
                collect_in_layers(owners[weight], weight, vectors, leaf.collected, bf16=bf16_passes)
            self.leaves.append(leaf)
        #: the number of coefficients per expert: that of leaves if each has one
        self.columns = sum(leaf.count for leaf in self.leaves)

    @torch.no_grad()
    def merge(self, coefficients: Tensor) -> None:
        """Set the model's weights; `coefficients` has shape (experts, columns)."""
        # A product with strided coefficients would take twice the time.
        pairs = ((leaf, columns.contiguous()) for leaf, columns in self._split(coefficients))
        for _ in self._map(lambda pair: pair[0].merge(pair[1]), pairs):
            pass

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """Return the gradient of everything back-propagated since, shape (experts, columns).

        This clears the gradients of the parameters.
        """
        projected = torch.cat(list(self._map(Leaf.gradient, self.leaves)), dim=1)
        for leaf in self.leaves:
            leaf.parameter.grad = leaf.collected.grad = None
        return projected

    def by_leaf(self, coefficients: Tensor) -> Iterator[tuple[Leaf, Tensor]]:
        """Yield every leaf with its coefficients, of shape (experts, *leaf.shape)."""
        for leaf, columns in self._split(coefficients):
            yield leaf, columns.reshape(-1, *leaf.shape)

    def count_storage(self) -> dict[str, int]:
        """Return the number of leaves by how their task vectors are held."""
        return dict(Counter(leaf.vectors.storage for leaf in self.leaves))

    def _split(self, coefficients: Tensor) -> Iterator[tuple[Leaf, Tensor]]:
        counts = [leaf.count for leaf in self.leaves]
        return zip(self.leaves, coefficients.split_with_sizes(counts, dim=1), strict=True)

    def _map(self, work: Callable[[Any], Any], units: Iterable[Any]) -> Iterator[Any]:
        """Process leaves one after the other on all cores, or concurrently if read from disk."""
        run = map_on_cores if self._on_disk else map
        yield from run(torch.no_grad()(work), units)


def _choose_storage(
    merged: MergedSource, storage: Storage, dtype: torch.dtype, rows_in: Path | None
) -> Store:
    """Return what stores the task vectors of a parameter."""
    kernel: Any = merged.kernel
    if storage == "disk":
        experts = len(merged.operands.experts)
        file = None if rows_in is None else RowFile.create(rows_in, merged.infos, experts, dtype)
        return lambda sharing, _: OnDisk(sharing, merged, kernel, file)

    def hold(sharing: Sharing, parameter: nn.Parameter) -> TaskVectors:
        stored = torch.bfloat16 if storage == "bf16" else parameter.dtype
        whole = Resident.read(merged, kernel, sharing, like=parameter, dtype=stored)
        return factorise(whole) if storage == "auto" else whole

    return hold


def _make_leaves(
    pool: ModelPool[Any], merged: MergedSource, model: nn.Module, grain: Grain, store: Store
) -> Iterator[Leaf]:
    """Yield the leaves. They are read concurrently: small matrices of a transform use one core."""
    kernel: Any = merged.kernel

    def make(candidate: _Candidate) -> Leaf | None:
        parameter, name = candidate.parameter, candidate.names[0]
        if merged.is_unchanged(name) or not any(
            bool(kernel.rows(piece).any()) for _, piece in pieces_of(merged, name)
        ):
            return None  # no expert changed it
        parameter.requires_grad_(True)

        def read_rows() -> Tensor:
            ((_, piece),) = pieces_of(merged, name, Cut.TENSOR)
            return rows_of(kernel, piece).to(parameter)

        sharing = choose_sharing(merged.infos[name], grain, read_rows)
        vectors = store(sharing, parameter)
        shape = (len(merged.operands.experts), sharing.count)
        collected = parameter.detach().new_zeros(shape, requires_grad=True)
        tensors, slot = candidate.tensors, candidate.slot
        return Leaf(candidate.names, parameter, vectors, tensors, collected, slot)

    leaves = map_on_cores(make, _candidates(pool, model))
    yield from (leaf for leaf in leaves if leaf is not None)


@dataclass(frozen=True)
class _Candidate:
    """A parameter, or a matrix in one, that becomes a leaf if an expert changed it."""

    names: tuple[str, ...]
    parameter: nn.Parameter
    tensors: tuple[str, ...]
    slot: Slot | None


def _candidates(pool: ModelPool[Any], model: nn.Module) -> Iterator[_Candidate]:
    """Yield the merged parameters, or the matrices of those that hold several."""
    slots = pool.live_layout.slots
    for parameter, tied in group_tied_names(merged_parameters(pool, model)).items():
        parameter.data = parameter.detach().contiguous()
        tensors = tuple(tied)
        if tied[0] not in slots:
            yield _Candidate(tensors, parameter, tensors, None)
            continue
        for tied_slots in zip(*(slots[name] for name in tied), strict=True):
            names = tuple(slot.name for slot in tied_slots)
            yield _Candidate(names, parameter, tensors, tied_slots[0])
