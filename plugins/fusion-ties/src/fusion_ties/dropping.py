"""Transforms that drop entries of task vectors at random: the first steps of DARE and DELLA.

A random number depends only on the seed, the expert, the tensor's name and the element, so the same
entries are dropped however the work is divided.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fusion_core import Cut, Transform, expert_values
from fusion_core.weights import Piece, Scan, Scope, broadcast_per_expert
from fusion_ties.config import DropConfig, MagPruneConfig, values_of
from fusion_ties.sums import l1_factors, sum_magnitudes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: The engine checks results of division by such a density, in case it was not meant.
_SMALL = 0.01


class Drop(Transform[DropConfig]):
    """Keep each entry of a task vector with probability `density` (DARE, arXiv:2311.03099).

    Formula: m_k * tau_k / density, with m_k = 1 with probability `density`, else 0.
    Options: `density` (probability; 0.5), `rescale` (`paper`). `paper` divides kept entries by the
    density, which preserves their expected value. `l1` scales a tensor to its former sum of
    magnitudes, as mergekit does. mergekit leaves tensors alone whose sum is below 1e-7, this method
    only those with no entry left. `none` keeps entries as they are. Density 1 changes nothing, 0
    leaves nothing.
    Shapes: any. Data: none. Cost: one random number per entry; for `l1` two, and one more pass.
    """

    config_class = DropConfig
    pieces_held = (6, 4)

    @property
    def scope(self) -> Scope:
        """Survey every tensor for `l1`, else nothing."""
        return Scope.TENSOR if self.config.rescale == "l1" else Scope.NONE

    @property
    def is_bounded(self) -> bool:
        """Whether entries stay as they are, become zero, or are divided by no small number."""
        if self.config.rescale != "paper":
            return self.config.rescale == "none"
        return all(not density or density > _SMALL for density in values_of(self.config.density))

    def survey(self, scan: Scan) -> Tensor:
        """Return the factors that restore each expert's sum of magnitudes."""
        return l1_factors(scan, self.sum_magnitudes)

    def sum_magnitudes(self, piece: Piece) -> Tensor:
        """Sum each expert's magnitudes in one piece before and after entries are dropped."""
        return sum_magnitudes(piece.task_vectors, self._drop(piece))

    def rows(self, piece: Piece) -> Tensor:
        """Drop entries of one piece, and rescale the others."""
        rows = self._drop(piece)
        if self.config.rescale == "l1":
            return rows.mul_(broadcast_per_expert(piece.state, rows))
        if self.config.rescale == "paper":
            for row, density in zip(rows, self._densities(piece), strict=True):
                row.div_(density or 1)
        return rows

    def _drop(self, piece: Piece) -> Tensor:
        return _keep_at_random(piece, self._densities(piece))

    def _densities(self, piece: Piece) -> tuple[float, ...]:
        return expert_values(self.config.density, piece.names, "density")


class MagPrune(Transform[MagPruneConfig]):
    """Keep entries at random, large ones more often (MagPrune, DELLA's first step, 2406.11617).

    Formula: m_k * tau_k / p_k, with m_k = 1 with probability p_k, else 0. In a row of L entries,
    the entry of rank r (0 for the smallest magnitude) has p_k = density - epsilon + 2 * epsilon *
    r / (L - 1). A row belongs to one index of the first dimension, a vector is one row, and a row
    of one entry has p_k = density.
    Options: `density` (mean probability; 0.5), `epsilon` (half of the paper's window size; 0.15),
    `rescale` (`paper`). `paper` divides kept entries by p_k, as the authors' code does. `l1` scales
    a tensor to its former sum of magnitudes, as mergekit does. `none` keeps entries as they are.
    Density 1 changes nothing, 0 leaves nothing.
    Source: arXiv:2406.11617. mergekit ranks tensors of more than two dimensions along the second
    one, and fails on scalars.
    Shapes: any. Data: none. Cost: a sort of every row; for `l1` two.
    """

    config_class = MagPruneConfig
    pieces_held = (2, 7)
    cut = Cut.ROW  # probabilities depend on ranks in a row

    @property
    def scope(self) -> Scope:
        """Survey every tensor for `l1`, else nothing."""
        return Scope.TENSOR if self.config.rescale == "l1" else Scope.NONE

    def survey(self, scan: Scan) -> Tensor:
        """Return the factors that restore each expert's sum of magnitudes."""
        in_rows = replace(scan, cut=scan.cut.coarser(Cut.ROW))
        return l1_factors(in_rows, self.sum_magnitudes)

    def sum_magnitudes(self, piece: Piece) -> Tensor:
        """Sum each expert's magnitudes in one piece before and after entries are dropped."""
        return sum_magnitudes(
            piece.task_vectors, _keep_at_random(piece, self._probabilities(piece))
        )

    def rows(self, piece: Piece) -> Tensor:
        """Drop entries of one piece, and rescale the others."""
        probabilities = self._probabilities(piece)
        rows = _keep_at_random(piece, probabilities)
        if self.config.rescale == "l1":
            return rows.mul_(broadcast_per_expert(piece.state, rows))
        if self.config.rescale == "none":
            return rows
        return rows.div_(probabilities.where(probabilities > 0, 1))

    def by_rank(self, names: Sequence[str], length: int, dtype: torch.dtype) -> Tensor:
        """Return the probabilities in a row, smallest magnitude first: of shape (experts, length).

        `names` are the experts', `length` is the row's, and at least 1.
        """
        densities = expert_values(self.config.density, names, "density")
        epsilons = expert_values(self.config.epsilon, names, "epsilon")
        table = torch.empty(len(names), length, dtype=dtype)
        for row, density, epsilon in zip(table, densities, epsilons, strict=True):
            if density in {0, 1} or length == 1:
                row.fill_(density)
            else:
                # torch.linspace rounds differently on other processors
                ranks = torch.arange(length, dtype=torch.float64)
                row.copy_(ranks.mul_(2 * epsilon / (length - 1)).add_(density - epsilon))
        return table

    def _probabilities(self, piece: Piece) -> Tensor:
        """Return every entry's probability to be kept, of the shape of the task vectors."""
        rows = piece.task_vectors
        probabilities = torch.empty_like(rows)
        if not rows.numel():
            return probabilities
        lines = rows.reshape(len(rows), piece.shape[0] if len(piece.shape) > 1 else 1, -1)
        tables = self.by_rank(piece.names, lines.shape[-1], rows.dtype).to(rows.device)
        chances = probabilities.view(lines.shape)
        for expert, table in enumerate(tables):
            if table[0] == table[-1]:  # ranks do not matter
                chances[expert] = table[0]
            else:
                order = lines[expert].abs().argsort(dim=-1, stable=True)
                chances[expert].scatter_(-1, order, table.expand_as(order))
        return probabilities


def _keep_at_random(piece: Piece, probabilities: Tensor | tuple[float, ...]) -> Tensor:
    """Keep every entry with its probability, zero the others; probabilities are given by expert."""
    rows = torch.empty_like(piece.task_vectors)
    for expert, (row, limit) in enumerate(zip(piece.task_vectors, probabilities, strict=True)):
        torch.mul(row, piece.uniform(expert) < limit, out=rows[expert])
    return rows
