"""Effective ranks of task vectors: how many directions a matrix changed in.

exp(entropy of the singular values, normalised to a sum of one): Roy and Vetterli, "The effective
rank", EUSIPCO 2007. Singular values are those of the columns' inner products, which are summed up
in fp64 row by row, so memory does not grow with a matrix. Of wide matrices some columns are looked
at, and of large models some matrices, evenly spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from fusion_core import Cut, show_notes_on
from fusion_core.weights import is_matrix
from fusion_report.vectors import merged_infos, scan_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion_core import Piece, Progress, TensorInfo
    from fusion_core.weights import Operands

#: Columns of a matrix that are looked at, at most.
COLUMNS = 1024
#: Multiplications that all of it may take: about half a minute of a core.
_BUDGET = 2 * 10**11
_GOLDEN = 0.6180339887498949
#: Singular values below this fraction of the largest one are rounding, and count as zero.
_ROUNDING = 1e-6
#: Singular values below this fraction of the largest one do not count towards the numerical rank:
#: a merged adapter's are the rounding of the weights that it was added to.
_NEGLIGIBLE = 1e-2


@dataclass(frozen=True)
class Ranks:
    """Means over the matrices that were looked at, by expert; NaN for one that changed none."""

    #: effective ranks
    ranks: Sequence[float]
    #: effective ranks as a share of the largest one possible
    shares: Sequence[float]
    #: numerical ranks as a share of the largest one possible
    numerical_shares: Sequence[float]
    #: how many matrices were looked at, of how many
    matrices: tuple[int, int]
    #: whether only some columns were looked at
    is_sampled: bool


def effective_ranks(operands: Operands, progress: Progress) -> Ranks:
    """Return the effective ranks of the experts' task vectors."""
    every = [info for info in merged_infos(operands) if is_matrix(info.shape)]
    chosen = _affordable(every, len(operands.experts))
    found = [torch.full((3, len(operands.experts)), torch.nan, dtype=torch.float64)]
    track = progress.track("decompose", total=len(chosen))
    with track as advance, show_notes_on(advance):
        for info in chosen:
            found.append(_of_matrix(operands, info))
            advance(1, note=info.name)
    ranks, shares, numerical_shares = torch.stack(found).nanmean(0).tolist()
    is_sampled = any(info.shape[1] > COLUMNS for info in chosen)
    return Ranks(ranks, shares, numerical_shares, (len(chosen), len(every)), is_sampled)


def _affordable(infos: Sequence[TensorInfo], experts: int) -> Sequence[TensorInfo]:
    """Return as many matrices as the budget allows, spread over the model.

    By multiples of the golden ratio: every n-th would be the same one of each layer for some n.
    """
    cost = experts * sum(info.shape[0] * min(info.shape[1], COLUMNS) ** 2 for info in infos)
    share = _BUDGET / max(cost, 1)
    return [info for number, info in enumerate(infos) if number * _GOLDEN % 1 < share]


def _of_matrix(operands: Operands, info: TensorInfo) -> Tensor:
    """Return the rows of `Ranks` for one matrix, of shape (3, experts); NaN for what is zero."""
    rows, columns = info.shape
    looked = torch.linspace(0, columns - 1, min(columns, COLUMNS)).round().long()
    zero = torch.zeros(len(operands.experts), len(looked), len(looked), dtype=torch.float64)
    scan = scan_of(operands, [info], Cut.ROW)
    products = scan(partial(_column_products, columns=looked), torch.Tensor.add_, zero)
    values = singular_values(products)
    ranks = torch.stack([effective_rank(value) for value in values])
    numerical = (values >= _NEGLIGIBLE * values.amax(-1, keepdim=True)).double().sum(-1)
    numerical = numerical.where(values.amax(-1) > 0, torch.nan)
    full = min(rows, len(looked))
    return torch.stack([ranks, ranks / full, numerical / full])


def _column_products(piece: Piece, columns: Tensor) -> Tensor:
    """Return the inner products of columns over some rows, of shape (experts, columns, columns)."""
    rows = piece.task_vectors[..., columns].double().cpu()
    return rows.mT @ rows


def singular_values(products: Tensor) -> Tensor:
    """Return singular values of matrices by the inner products of their columns, (..., n, n)."""
    values: Tensor = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    return values.where(values > _ROUNDING * values.amax(-1, keepdim=True), 0)


def effective_rank(values: Tensor) -> Tensor:
    """Return exp(entropy of singular values, shape (n,)); NaN where all are zero."""
    shares = values / values.sum()
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()
