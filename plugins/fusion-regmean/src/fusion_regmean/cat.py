"""CAT merging (arXiv:2505.06977): task vectors without the parts that disturb other tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fusion_core import Algorithm, Cut, Piece, RunContext, WeightSource
from fusion_core.weights import Linear, RowsKernel, sum_in_order
from fusion_regmean.config import CatConfig
from fusion_regmean.layer_method import ForLayers
from fusion_regmean.layer_statistics import expert_statistics
from fusion_regmean.sources import task_vector_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from fusion_core import ModelPool
    from fusion_regmean.layer_statistics import LayerStatistics
    from fusion_regmean.sources import LayerTensors


class Cat(ForLayers, Algorithm[CatConfig]):
    """Sum task vectors without the parts that disturb other tasks (CAT, arXiv:2505.06977).

    Formula: base + scale * sum of T_k, where T_i becomes (I - B_k B_k') T_i for every other task k,
    in pool order. For the weight of a linear layer, y = W x, B_k are output directions: the largest
    eigenvectors with positive eigenvalues, at most `directions`, of the sum over other experts i of
    T_i (G_k - penalty * G_i) T_i'. G_k = E[x x'] of the inputs of expert k's layer on its own task.
    For the weight of a normalisation, B_k are as many entries, with the largest sums of
    T_i^2 (E_k - penalty * E_i), E_k being the mean square of the values that the weight multiplies.
    For every other vector, B_k are the entries with the largest sums of T_i^2. All other task
    vectors are kept whole. Floating-point tensors that are not parameters (running statistics) are
    averaged.
    Options: `samples` (unlabeled examples per task; 16), `directions` (per matrix or vector; 4),
    `penalty` (5.0), `scale` (factor; 0.4).
    Differences: means over positions replace the paper's sums. A published port of the authors'
    code restores the norm of T_i after each step, this method does not.

    Data: `samples` unlabeled examples per task. Memory: one matrix (outputs, outputs) in fp64 per
    linear layer, the directions, and the moments of one expert. Cost: two passes of the examples
    through each expert; per layer, products of each expert's moments with all task vectors, and one
    eigendecomposition per expert. A resumed run gathers again.
    """

    config_class = CatConfig
    other_tensors = "their task vectors are kept whole"
    treats_vectors = True

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Find what to trim; trimming and summing are lazy."""
        conflicts = Conflicts(self.config, pool, context)
        for expert, statistics in expert_statistics(pool, self.config.samples, context):
            conflicts.add_losses(expert, statistics)
            parameters = statistics.parameters
        infos = pool.layout.unpack(pool.reference).infos
        untrained = infos.keys() - parameters
        conflicts.trimming.exempt(untrained)
        vectors = {name for name, info in infos.items() if len(info.shape) == 1}
        treated = vectors | untrained  # vectors of no layer are trimmed by their size
        for expert, statistics in expert_statistics(pool, self.config.samples, context):
            conflicts.protect(expert, statistics)
            names = (*statistics.moments, *statistics.energies)
            treated.update(*(statistics.tied[name] for name in names))
        self.warn_of_untreated(treated, pool, context)
        trimmed, count = context.transform(pool, conflicts.trimming), len(pool.experts)
        factors = {name: 1 / count if name in untrained else self.config.scale for name in infos}
        return context.merge(
            trimmed, Linear({name: (factor,) * count for name, factor in factors.items()})
        )


class _Weight(NamedTuple):
    """A matrix, or the weight of a normalisation, and how a task vector changes its outputs."""

    #: all names of the same parameter
    names: tuple[str, ...]
    outputs_last: bool
    #: returns E[(T x) (T x)'] of a task vector T, or E[(T z)^2] of a normalisation's
    change: Callable[[LayerTensors], Tensor]


class Conflicts:
    """The conflicts between tasks: where one expert's task vector disturbs another's task."""

    def __init__(self, config: CatConfig, pool: ModelPool[Any], context: RunContext) -> None:
        self.trimming = ConflictTrimming(config.directions)
        self._penalty = config.penalty
        self._layout = pool.layout
        self._vectors = {
            expert: task_vector_of(pool, source, context) for expert, source in pool.experts.items()
        }
        #: the sum over experts of what their task vectors change on their own tasks, by matrix
        self._losses: dict[str, Tensor] = {}

    def add_losses(self, expert: str, statistics: LayerStatistics) -> None:
        """Add the effect of an expert's task vector on its own task."""
        for (name, *_), _, change in self._weights(statistics):
            loss = change(self._vectors[expert])
            self._losses[name] = self._losses[name].add_(loss) if name in self._losses else loss

    def protect(self, expert: str, statistics: LayerStatistics) -> None:
        """Find what to trim for an expert's task; the losses must be complete."""
        number = [*self._vectors].index(expert)
        for names, outputs_last, change in self._weights(statistics):
            score = change(self._vectors[expert]).sub_(self._losses[names[0]]).mul_(self._penalty)
            for other, vector in self._vectors.items():
                if other != expert:
                    score += change(vector)
            for name in names:
                self.trimming.protect(name, number, score, outputs_last=outputs_last)

    def _weights(self, statistics: LayerStatistics) -> Iterator[_Weight]:
        for tensor, moments in statistics.moments.items():
            moment = moments.mean.cpu().double()
            twins = [self._matrices(twin, moments.dim) for twin in statistics.tied[tensor]]
            for same in zip(*twins, strict=True):
                names, (dim, *_) = zip(*same, strict=True)
                yield _Weight(names, dim == 0, partial(_linear_change, names[0], moment, dim))
        for tensor, energy in statistics.energies.items():
            change = partial(_scaled_change, tensor, energy.mean)
            yield _Weight(tuple(statistics.tied[tensor]), outputs_last=False, change=change)

    def _matrices(self, tensor: str, dim: int) -> list[tuple[str, int]]:
        """Return the matrices of a weight, each with the dimension of its inputs."""
        slots = self._layout.slots.get(tensor)
        if slots is None:
            return [(tensor, dim)]
        return [(slot.name, 1 - dim if slot.is_transposed else dim) for slot in slots]


def _linear_change(name: str, moment: Tensor, dim: int, vector: LayerTensors) -> Tensor:
    """Return E[(T x) (T x)'], of shape (outputs, outputs)."""
    values = vector.matrix(name).double()
    turned = values if dim == 1 else values.mT
    return turned @ moment @ turned.mT


def _scaled_change(name: str, energy: Tensor, vector: LayerTensors) -> Tensor:
    """Return E[(T z)^2] of every feature."""
    return vector.tensor(name).double().square() * energy


@dataclass(frozen=True)
class ConflictTrimming(RowsKernel):
    """Remove from every task vector what disturbs the other experts' tasks."""

    count: int
    #: by tensor and expert: an orthonormal basis of protected outputs, of shape (outputs, n), and
    #: whether outputs are the tensor's last dimension
    bases: dict[str, dict[int, tuple[Tensor, bool]]] = field(default_factory=dict)
    #: by tensor and expert: indices of protected features; a vector without them is trimmed by size
    features: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    cut = Cut.TENSOR

    def exempt(self, names: Iterable[str]) -> None:
        """Keep the task vectors of some tensors whole."""
        self.features.update((name, {}) for name in names)

    def protect(self, name: str, expert: int, score: Tensor, *, outputs_last: bool) -> None:
        """Protect the features, or the directions of a quadratic form, with the largest scores."""
        if score.dim() == 1:
            self.features.setdefault(name, {})[expert] = _largest(score, self.count)
            return
        values, vectors = torch.linalg.eigh(score)  # in ascending order
        # Where no input differs, an eigenvalue is zero up to rounding, and its sign means nothing.
        least = values.abs().max() * torch.finfo(values.dtype).eps * len(values)
        basis = vectors[:, _largest(values.where(values > least, 0), self.count)]
        self.bases.setdefault(name, {})[expert] = basis, outputs_last

    def rows(self, piece: Piece) -> Tensor:
        """Return trimmed task vectors of the same shape, (experts, ...)."""
        name, rows = piece.info.name, piece.task_vectors.clone()
        for expert, (basis, outputs_last) in self.bases.get(name, {}).items():
            others = _others(expert, rows)
            matrices = rows[others].mT if outputs_last else rows[others]
            columns = basis.to(matrices)
            trimmed = matrices - columns @ (columns.mT @ matrices)
            rows[others] = trimmed.mT if outputs_last else trimmed
        for expert, features in self._features(piece).items():
            rows[_others(expert, rows)[:, None], features.to(rows.device)] = 0
        return rows

    def _features(self, piece: Piece) -> dict[int, Tensor]:
        """Return the protected features of a vector: by scores or, in no layer, by size."""
        if piece.info.name in self.features or len(piece.info.shape) != 1:
            return self.features.get(piece.info.name, {})
        squares = piece.task_vectors.square()
        return {
            expert: _largest(sum_in_order(squares[_others(expert, squares)]), self.count)
            for expert in range(len(squares))
            if len(squares) > 1
        }


def _others(expert: int, rows: Tensor) -> Tensor:
    """Return the indices of all other experts."""
    indices = [index for index in range(len(rows)) if index != expert]
    return torch.tensor(indices, dtype=torch.long, device=rows.device)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the largest positive scores."""
    values, indices = scores.topk(min(count, len(scores)))
    return indices[values > 0]
