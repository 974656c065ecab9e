"""Effective ranks of task vectors: the number of directions in which a matrix changed.

The effective rank is exp(entropy of the singular values, normalised to a sum of one): Roy and
Vetterli, "The effective rank", EUSIPCO 2007. Singular values come from the inner products of the
columns, which are summed in fp64 row by row, so memory does not grow with a matrix. Wide matrices
and large models are sampled: only some columns and some matrices are used, evenly spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from fusion_core import Cut, show_notes_on
from fusion_core.weights import is_matrix
from fusion_report.vectors import make_scan, merged_infos

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion_core import Piece, Progress, TensorInfo
    from fusion_core.weights import Operands

#: Use at most this many columns of a matrix.
COLUMNS = 1024
#: Multiplications for all matrices together: about half a minute on one core.
_BUDGET = 2 * 10**11
_GOLDEN = 0.6180339887498949
#: Singular values below this fraction of the largest are rounding errors and count as zero.
_ROUNDING = 1e-6
#: Singular values below this fraction of the largest do not count towards the numerical rank. In a
#: merged adapter, they stem from rounding the weights that it was added to.
_NEGLIGIBLE = 1e-2


@dataclass(frozen=True)
class Ranks:
    """Means over the decomposed matrices, one per expert; NaN if it changed none of them."""

    #: effective ranks
    ranks: Sequence[float]
    #: effective ranks as a share of the full rank
    shares: Sequence[float]
    #: numerical ranks as a share of the full rank
    numerical_shares: Sequence[float]
    #: number of decomposed matrices, and of all matrices
    matrices: tuple[int, int]
    #: whether only some columns were used
    is_sampled: bool


def measure_ranks(operands: Operands, progress: Progress) -> Ranks:
    """Measure the effective ranks of the experts' task vectors."""
    matrices = [info for info in merged_infos(operands) if is_matrix(info.shape)]
    chosen = _sample_matrices(matrices, len(operands.experts))
    rows = [torch.full((3, len(operands.experts)), torch.nan, dtype=torch.float64)]
    track = progress.track("decompose", total=len(chosen))
    with track as advance, show_notes_on(advance):
        for info in chosen:
            rows.append(_measure_matrix(operands, info))
            advance(1, note=info.name)
    ranks, shares, numerical_shares = torch.stack(rows).nanmean(0).tolist()
    is_sampled = any(info.shape[1] > COLUMNS for info in chosen)
    return Ranks(ranks, shares, numerical_shares, (len(chosen), len(matrices)), is_sampled)


def _sample_matrices(infos: Sequence[TensorInfo], experts: int) -> Sequence[TensorInfo]:
    """Return as many matrices as the budget allows, evenly spread over the model.

    Multiples of the golden ratio choose them, because every n-th matrix could be the same one in
    each layer.
    """
    cost = experts * sum(info.shape[0] * min(info.shape[1], COLUMNS) ** 2 for info in infos)
    share = _BUDGET / max(cost, 1)
    return [info for number, info in enumerate(infos) if number * _GOLDEN % 1 < share]


def _measure_matrix(operands: Operands, info: TensorInfo) -> Tensor:
    """Return the ranks of one matrix, shape (3, experts); NaN if an expert did not change it."""
    rows, columns = info.shape
    sample = torch.linspace(0, columns - 1, min(columns, COLUMNS)).round().long()
    zero = torch.zeros(len(operands.experts), len(sample), len(sample), dtype=torch.float64)
    scan = make_scan(operands, [info], Cut.ROW)
    products = scan(partial(_column_products, columns=sample), torch.Tensor.add_, zero)
    values = singular_values(products)
    ranks = torch.stack([effective_rank(value) for value in values])
    numerical = (values >= _NEGLIGIBLE * values.amax(-1, keepdim=True)).double().sum(-1)
    numerical = numerical.where(values.amax(-1) > 0, torch.nan)
    full = min(rows, len(sample))
    return torch.stack([ranks, ranks / full, numerical / full])


def _column_products(piece: Piece, columns: Tensor) -> Tensor:
    """Return the inner products of columns over some rows, shape (experts, columns, columns)."""
    rows = piece.task_vectors[..., columns].double().cpu()
    return rows.mT @ rows


def singular_values(products: Tensor) -> Tensor:
    """Return singular values from the inner products of columns, shape (..., n, n)."""
    values: Tensor = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    return values.where(values > _ROUNDING * values.amax(-1, keepdim=True), 0)


def effective_rank(values: Tensor) -> Tensor:
    """Return exp(entropy of the singular values), of shape (n,); NaN if all are zero."""
    shares = values / values.sum()
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()
