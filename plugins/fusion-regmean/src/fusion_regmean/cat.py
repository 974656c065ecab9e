"""CAT merging (arXiv:2505.06977): task vectors without what disturbs other tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import Algorithm, Cut, Piece, RunContext, WeightSource
from fusion_core.weights import Linear, RowsKernel, in_order
from fusion_regmean.config import CatConfig
from fusion_regmean.experts import task_vector_of
from fusion_regmean.layered import ForLayers
from fusion_regmean.seen import seen_by_experts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from fusion_core import ModelPool
    from fusion_regmean.seen import Seen

    _Change = tuple[tuple[str, ...], bool, Callable[[WeightSource], Tensor]]


class Cat(ForLayers, Algorithm[CatConfig]):
    """base + scale * sum of T_k, each without what every other task is to be spared.

    Of the weight W of a linear layer, y = W x, task k is spared the outputs' directions B_k: the
    largest eigenvectors, at most `directions` and with positive eigenvalues, of the sum over other
    experts i of T_i (G_k - `penalty` * G_i) T_i^T, G_k being E[x x^T] of what expert k's layer is
    given on its own task. T_i becomes (I - B_k B_k^T) T_i, for one k after the other in pool order.
    Of the weight of a normalisation it is as many entries, those with the largest sums of
    T_i^2 (E_k - `penalty` * E_i), E_k being the mean square of what it multiplies; of every other
    vector those with the largest sums of T_i^2. All else keeps its task vectors. Follows the paper;
    means over positions replace sums, and a published port of the authors' code restores the norm
    of T_i after each step, which this does not.

    Data: `samples` unlabeled examples a task. Memory: for every linear layer one matrix (outputs,
    outputs) in fp64, the directions, and the moments of one expert. Cost: two passes of the
    examples through each expert; for every layer, products of each expert's moments with all task
    vectors, and an eigendecomposition an expert. A run that is resumed looks anew.
    """

    config_class = CatConfig
    otherwise = "their task vectors are kept whole"
    treats_vectors = True

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Find what is spared; trimming and summing stay lazy."""
        conflicts = Conflicts(self.config, pool, context)
        for expert, seen in seen_by_experts(pool, self.config.samples, context):
            conflicts.add_losses(expert, seen)
        vectors = (e.name for e in pool.reference.infos.values() if len(e.shape) == 1)
        treated = {*vectors}  # those that no layer has by their size
        for expert, seen in seen_by_experts(pool, self.config.samples, context):
            conflicts.spare(expert, seen)
            treated.update(*(seen.tied[name] for name in (*seen.moments, *seen.energies)))
        self.say_what_is_left(treated, pool, context)
        trimmed = context.transformed(pool, conflicts.spared)
        return context.merged(trimmed, Linear((self.config.scale,) * len(pool.experts)))


class Conflicts:
    """What each task's outputs change by the others' task vectors, against what those lose."""

    def __init__(self, config: CatConfig, pool: ModelPool[Any], context: RunContext) -> None:
        self.spared = Spared(config.directions)
        self._penalty = config.penalty
        self._layout = pool.layout
        self._vectors = {
            expert: self._layout.unpacked(task_vector_of(pool, source, context))
            for expert, source in pool.experts.items()
        }
        #: by matrix: the sum over experts of what each loses on its own task
        self._losses: dict[str, Tensor] = {}

    def add_losses(self, expert: str, seen: Seen) -> None:
        """Add what an expert's own task vector does to its own task."""
        for (name, *_), _, change in self._changes(seen):
            own = change(self._vectors[expert])
            self._losses[name] = self._losses[name].add_(own) if name in self._losses else own

    def spare(self, expert: str, seen: Seen) -> None:
        """Find what an expert's task is to be spared; the losses are complete."""
        number = [*self._vectors].index(expert)
        for names, turned, change in self._changes(seen):
            score = change(self._vectors[expert]).sub_(self._losses[names[0]]).mul_(self._penalty)
            for other, vector in self._vectors.items():
                if other != expert:
                    score += change(vector)
            for name in names:
                self.spared.add(name, number, score, turned=turned)

    def _changes(self, seen: Seen) -> Iterator[_Change]:
        """Yield by matrix what a task vector changes on these inputs.

        That is all names of the matrix, whether its outputs are the last dimension, and a function.
        """
        for tensor, moments in seen.moments.items():
            moment = moments.mean.cpu().double()
            twins = [self._matrices(twin, moments.dim) for twin in seen.tied[tensor]]
            for same in zip(*twins, strict=True):
                names, (dim, *_) = zip(*same, strict=True)
                yield names, dim == 0, partial(_linear_change, names[0], moment, dim)
        for tensor, energy in seen.energies.items():
            yield tuple(seen.tied[tensor]), False, partial(_scaled_change, tensor, energy.mean)

    def _matrices(self, tensor: str, dim: int) -> list[tuple[str, int]]:
        """Return the matrices of a weight, each with the dimension that inputs run along."""
        slots = self._layout.slots.get(tensor)
        if slots is None:
            return [(tensor, dim)]
        return [(slot.name, 1 - dim if slot.is_turned else dim) for slot in slots]


def _linear_change(name: str, moment: Tensor, dim: int, vector: WeightSource) -> Tensor:
    """Return E[(T x) (T x)^T], of shape (outputs, outputs)."""
    own = vector.tensor(name).double()
    turned = own if dim == 1 else own.mT
    return turned @ moment @ turned.mT


def _scaled_change(name: str, energy: Tensor, vector: WeightSource) -> Tensor:
    """Return E[(T z)^2] of every feature."""
    return vector.tensor(name).double().square() * energy


@dataclass(frozen=True)
class Spared(RowsKernel):
    """Task vectors without what each expert's task is spared of the others'."""

    count: int
    #: by tensor and expert: an orthonormal basis, of shape (outputs, n), and whether outputs are
    #: the tensor's last dimension
    bases: dict[str, dict[int, tuple[Tensor, bool]]] = field(default_factory=dict)
    #: by tensor and expert: indices of features
    features: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    @property
    def cut(self) -> Cut:
        """Tensors are whole."""
        return Cut.TENSOR

    def add(self, name: str, expert: int, score: Tensor, *, turned: bool) -> None:
        """Spare an expert's task what has the largest positive scores, or quadratic form."""
        if score.dim() == 1:
            self.features.setdefault(name, {})[expert] = _largest(score, self.count)
            return
        values, vectors = torch.linalg.eigh(score)  # in ascending order
        kept = _largest(values, self.count)
        self.bases.setdefault(name, {})[expert] = vectors[:, kept], turned

    def rows(self, piece: Piece) -> Tensor:
        """Return trimmed task vectors, of the same shape (experts, ...)."""
        name, rows = piece.info.name, piece.task_vectors.clone()
        for expert, (basis, turned) in self.bases.get(name, {}).items():
            others = _others(expert, rows)
            found = rows[others].mT if turned else rows[others]
            columns = basis.to(found)
            left = found - columns @ (columns.mT @ found)
            rows[others] = left.mT if turned else left
        for expert, features in self._features(piece).items():
            rows[_others(expert, rows)[:, None], features.to(rows.device)] = 0
        return rows

    def _features(self, piece: Piece) -> dict[int, Tensor]:
        """Return what is spared of a vector: as seen or, of one that is added, by its size."""
        if piece.info.name in self.features or len(piece.info.shape) != 1:
            return self.features.get(piece.info.name, {})
        squares = piece.task_vectors.square()
        return {
            expert: _largest(in_order(squares[_others(expert, squares)]), self.count)
            for expert in range(len(squares))
            if len(squares) > 1
        }


def _others(expert: int, rows: Tensor) -> Tensor:
    """Return the numbers of all other experts."""
    numbers = [n for n in range(len(rows)) if n != expert]
    return torch.tensor(numbers, dtype=torch.long, device=rows.device)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the largest scores that are positive."""
    values, found = scores.topk(min(count, len(scores)))
    return found[values > 0]
