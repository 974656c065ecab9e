"""Trimming and sign election: the first two steps of TIES (arXiv:2306.01708), alone and together.

Both are written as arithmetic, because masks are slow: comparing into booleans costs five times as
much as adding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import RowsKernel, Scope, sum_in_order
from fusion_thresholds.selection import (
    kth_largest_magnitudes,
    magnitude_dtype,
    task_vectors_of,
)
from fusion_thresholds.surveying import thresholds_and_votes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights import Piece, Scan
    from fusion_thresholds.selection import Rows


def count_for_density(density: float, numel: int) -> int:
    """Return how many of `numel` entries a density keeps: max(1, floor(density * n)), 0 for 0."""
    return 0 if density == 0 else max(1, int(density * numel))


def trim_thresholds(scan: Scan, density: float | Sequence[float]) -> torch.Tensor:
    """Return the smallest magnitude that a density keeps of each expert, of shape (experts,).

    The experts share one density, or have one each.
    """
    return largest_by_rank(scan, [_counts(scan, density)])[0]


def _counts(scan: Scan, density: float | Sequence[float]) -> list[int]:
    """Return how many entries a density keeps of each expert."""
    experts = len(scan.operands.experts)
    densities = [density] * experts if isinstance(density, int | float) else density
    return [count_for_density(share, scan.numel) if scan.numel else 0 for share in densities]


def largest_by_rank(
    scan: Scan, ranks: Sequence[Sequence[int]], rows: Rows = task_vectors_of
) -> torch.Tensor:
    """Return each expert's magnitude of its own rank, 1 for the largest, and infinity for rank 0.

    `ranks` has one row of ranks per row of the result, which has the shape (rows, experts).
    `rows(piece)` returns the values, as in `kth_largest_magnitudes`.
    """
    distinct = tuple(sorted({*chain.from_iterable(ranks)} - {0}))
    if not distinct:
        return torch.full((len(ranks), len(scan.operands.experts)), torch.inf)
    magnitudes = dict(zip(distinct, kth_largest_magnitudes(scan, distinct, rows), strict=True))
    none = torch.full_like(magnitudes[distinct[0]], torch.inf)
    chosen = [
        torch.stack([magnitudes.get(rank, none)[expert] for expert, rank in enumerate(row)])
        for row in ranks
    ]
    return torch.stack(chosen)


def trim(task_vectors: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Zero every entry whose magnitude is below its expert's threshold; keep equal ones."""
    result = torch.empty_like(task_vectors)
    below = _next_below(thresholds, task_vectors.dtype).tolist()
    for row, out, bound in zip(task_vectors, result, below, strict=True):
        torch.hardshrink(row, bound, out=out)
    return result


def _next_below(thresholds: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the largest numbers below thresholds; keep infinity, which trims everything."""
    rounded = thresholds.to(dtype)
    is_below = thresholds.isinf() | (rounded.double() < thresholds.double())
    return rounded.where(is_below, rounded.nextafter(torch.full_like(rounded, -torch.inf)))


@dataclass(frozen=True)
class TrimKernel(RowsKernel):
    """Keeps the fraction `density` of each task vector's entries with the largest magnitudes.

    It also keeps entries that equal the smallest of these.
    """

    is_bounded = True

    density: float | tuple[float, ...]
    scope: Scope = Scope.MODEL

    def survey(self, scan: Scan) -> torch.Tensor:
        """Find one threshold per expert."""
        return trim_thresholds(scan, self.density)

    def rows(self, piece: Piece) -> torch.Tensor:
        """Zero every entry below its expert's threshold."""
        return trim(piece.task_vectors, piece.state)


@dataclass(frozen=True)
class ElectKernel(RowsKernel):
    """Zeroes the entries that do not have the sign of their weighted sum over the experts.

    Where the sum is exactly zero, the sign is that of the majority in the scope or, without a
    scope, plus. An expert with a negative weight votes with the opposite sign, so its entries are
    kept where that one is elected. One of weight 0 has no vote, and its entries are kept as with a
    positive weight.
    """

    is_bounded = True

    scope: Scope = Scope.MODEL

    def survey(self, scan: Scan) -> float:
        """Find the sign that most entries elect."""
        return majority_sign(scan)

    def rows(self, piece: Piece) -> torch.Tensor:
        """Zero the entries of the other sign."""
        rows, weights = piece.task_vectors, piece.weights
        sign = elect_sign(rows * weights, 1.0 if piece.state is None else piece.state)
        votes = rows.where(weights >= 0, -rows)
        return agreeing_magnitudes(votes, sign).sign_().mul_(rows)


@dataclass(frozen=True)
class TrimSurvey:
    """Statistics of all task vectors that trimming and sign election of an entry depend on."""

    #: the smallest magnitude kept of each expert, shape (experts,)
    thresholds: torch.Tensor
    #: the sign of entries that cancel exactly: 1, -1, or 0 where even the majority is tied
    tie: float

    @classmethod
    def of(
        cls, scan: Scan, density: float | Sequence[float], *, majority: bool = True
    ) -> TrimSurvey:
        """Survey the thresholds and, by default, the sign of the majority.

        The experts share one density, or have one each.

        Without the majority, entries that cancel are positive.
        """
        if not majority:
            return cls(trim_thresholds(scan, density), 1.0)
        counts, votes = _counts(scan, density), None
        if all(counts) and magnitude_dtype(scan) is torch.float32:
            thresholds, votes = thresholds_and_votes(scan, counts)
        else:
            thresholds = trim_thresholds(scan, density)
        if votes is None:
            return cls(thresholds, majority_sign(scan, thresholds))
        return cls(thresholds, float((votes > 0) - (votes < 0)))

    def trim(self, task_vectors: torch.Tensor) -> torch.Tensor:
        """Zero every entry that is not among the largest of its expert."""
        return trim(task_vectors, self.thresholds)

    def sign(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the sign that each entry elects, of shape (...)."""
        return elect_sign(rows, self.tie)


def majority_sign(scan: Scan, thresholds: torch.Tensor | None = None) -> float:
    """Return the sign that most entries elect, 1 or -1; 0 if it is a tie.

    An entry elects the sign of the weighted sum of its task vectors, which are first trimmed if
    there are thresholds.
    """
    votes = scan(partial(count_votes, thresholds), torch.add, torch.zeros((), dtype=torch.int64))
    return float(votes.sign())


def count_votes(thresholds: torch.Tensor | None, piece: Piece) -> torch.Tensor:
    """Count positive minus negative signs of a block's summed entries."""
    rows = piece.task_vectors
    rows = rows if thresholds is None else trim(rows, thresholds)
    return sum_in_order(rows * piece.weights).sign().to(torch.int64).sum()


def elect_sign(rows: torch.Tensor, tie: float) -> torch.Tensor:
    """Return the sign of the sum over experts, 1 or -1; where that is exactly zero, the sign `tie`.

    `tie` is 1, -1, or 0; with 0, such entries have no sign and are 0.
    """
    total = sum_in_order(rows)
    if tie == 0:
        return total.sign_()
    # An exact zero is +0, whose sign is copied; negate it where ties are negative.
    total = total if tie > 0 else torch.rsub(total, 0.0)
    # Write `tie` into the total, negated where the total is negative: three times as fast on bits.
    integers = torch.int64 if total.dtype is torch.float64 else torch.int32
    bits = int(torch.tensor(tie, dtype=total.dtype).view(integers))
    sign_bit = torch.iinfo(integers).min
    return total.view(integers).bitwise_and_(sign_bit).bitwise_xor_(bits).view(total.dtype)


def agreeing_magnitudes(rows: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Return the magnitudes of entries that have the elected sign, and 0 for all others."""
    return (rows * sign).clamp_min_(0)
