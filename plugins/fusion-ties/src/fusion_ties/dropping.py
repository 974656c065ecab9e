"""Transforms that drop entries of task vectors by chance: DARE's and DELLA's.

Every random number depends on the seed, the expert, the tensor and the element alone, so the same
entries are dropped however the work is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from fusion_core import Cut, Transform
from fusion_core.weights import Piece, Scan, Scope, per_expert
from fusion_ties.config import DropConfig, MagPruneConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Drop(Transform[DropConfig]):
    """Keep each entry of a task vector with probability `density` (DARE, arXiv:2311.03099).

    With `rescale: paper` what is kept is divided by the density, which preserves every entry's
    expected value. With `l1`, as mergekit, a tensor is multiplied by what restores the sum of its
    magnitudes; mergekit leaves tensors alone whose sum is below 1e-7, here those that have nothing
    left. Density 1 changes nothing, 0 leaves nothing. Shapes: any. Cost: a random number an entry;
    for `l1` twice, with one more pass.
    """

    config_class = DropConfig
    pieces_held = (6, 4)

    @property
    def scope(self) -> Scope:
        """What is lost is measured a tensor."""
        return Scope.TENSOR if self.config.rescale == "l1" else Scope.NONE

    def survey(self, scan: Scan) -> Tensor:
        """Find what restores each expert's sum of magnitudes."""
        return _lost(scan, self._kept)

    def rows(self, piece: Piece) -> Tensor:
        """Drop, and rescale."""
        kept = self._kept(piece)
        if self.config.rescale == "l1":
            return kept.mul_(per_expert(piece.state, kept))
        return kept.div_(self.config.density or 1)

    def _kept(self, piece: Piece) -> Tensor:
        return _by_chance(piece, [self.config.density] * len(piece.names))


class MagPrune(Transform[MagPruneConfig]):
    """Keep entries by chance, large ones more often (MagPrune, DELLA's first step, 2406.11617).

    In each row of L entries, the one of rank r (from 0, the smallest magnitude) is kept with
    probability density - epsilon + 2 * epsilon * r / (L - 1); epsilon is half of the paper's window
    size. With `rescale: paper`, as the authors' code, each entry is divided by its own probability;
    with `l1`, as mergekit, a tensor is multiplied by what restores the sum of its magnitudes.
    Density 1 changes nothing, 0 leaves nothing.

    A row is what belongs to one index of the first dimension; vectors are one row, and a row of one
    entry is kept with probability `density`. mergekit ranks tensors of more than two dimensions
    along the second, and fails on scalars. Cost: a sort of every row; for `l1` twice.
    """

    config_class = MagPruneConfig
    pieces_held = (2, 10)

    @property
    def cut(self) -> Cut:
        """Rows are whole."""
        return Cut.ROW

    @property
    def scope(self) -> Scope:
        """What is lost is measured a tensor."""
        return Scope.TENSOR if self.config.rescale == "l1" else Scope.NONE

    def survey(self, scan: Scan) -> Tensor:
        """Find what restores each expert's sum of magnitudes."""
        return _lost(replace(scan, cut=scan.cut.coarser(Cut.ROW)), self._kept)

    def rows(self, piece: Piece) -> Tensor:
        """Drop, and rescale."""
        chances = self._chances(piece.task_vectors)
        kept = _by_chance(piece, chances)
        if self.config.rescale == "l1":
            return kept.mul_(per_expert(piece.state, kept))
        return kept.div_(chances.where(chances > 0, 1))

    def _kept(self, piece: Piece) -> Tensor:
        return _by_chance(piece, self._chances(piece.task_vectors))

    def _chances(self, rows: Tensor) -> Tensor:
        """Return every entry's probability to be kept, of the shape of `rows`."""
        density, epsilon = self.config.density, self.config.epsilon
        chances = torch.full_like(rows, density)
        if density in {0, 1} or not rows.numel():
            return chances
        lines = rows.abs().reshape(len(rows), rows.shape[1] if rows.dim() > 2 else 1, -1)  # noqa: PLR2004
        if lines.shape[-1] > 1:
            by_rank = torch.linspace(density - epsilon, density + epsilon, lines.shape[-1]).to(rows)
            order = lines.argsort(dim=-1, stable=True)
            chances.view(lines.shape).scatter_(-1, order, by_rank.expand_as(order))
        return chances


def _by_chance(piece: Piece, chances: Tensor | list[float]) -> Tensor:
    """Keep each expert's entries with the probabilities given, and zero the others."""
    kept = torch.empty_like(piece.task_vectors)
    for number, (row, chance) in enumerate(zip(piece.task_vectors, chances, strict=True)):
        torch.mul(row, piece.uniform(number) < chance, out=kept[number])
    return kept


def _lost(scan: Scan, kept: Callable[[Piece], Tensor]) -> Tensor:
    """Return each expert's sum of magnitudes over that of what it keeps, 1 where that is zero."""
    zeros = torch.zeros(2, len(scan.operands.experts), dtype=torch.float64)
    before, after = scan(_Magnitudes(kept), torch.add, zeros)
    return torch.where(after > 0, before / after, 1.0)


@dataclass(frozen=True)
class _Magnitudes:
    """Sums the magnitudes of a block, before and after, to shape (2, experts)."""

    kept: Callable[[Piece], Tensor]

    def __call__(self, piece: Piece) -> Tensor:
        both = torch.stack([piece.task_vectors, self.kept(piece)])
        return both.double().abs().unsqueeze(-1).flatten(2).sum(-1).cpu()
