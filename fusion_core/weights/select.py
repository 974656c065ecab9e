"""Exact selection by magnitude, without sorting, and sign election: kernels that methods share.

The k-th largest magnitude over a whole model is found by streaming: the bits of a non-negative
float, read as an integer, order as the floats do, so counting them digit by digit narrows the
answer down to one value in a few passes over the weights, exactly, in memory that does not grow
with the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion_core.weights.piece import in_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion_core.weights.merged import Scan
    from fusion_core.weights.piece import Piece

_DIGIT = 16
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def kept_count(density: float, numel: int) -> int:
    """Return how many of `numel` entries a density keeps: max(1, floor(density * n)), 0 for 0."""
    return 0 if density == 0 else max(1, int(density * numel))


def kth_largest_magnitudes(
    scan: Scan, k: int, rows: Callable[[Piece], torch.Tensor]
) -> torch.Tensor:
    """Return each expert's k-th largest magnitude over everything a scan sees.

    `rows(piece)` gives fp32 or fp64 values of shape (experts, ...), the same on every pass. 1 <= k
    <= `scan.numel`. The result has shape (experts,) and the rows' dtype; it is exact.
    """
    dtype = _widest(scan)
    found = torch.zeros(len(scan.operands.experts), dtype=torch.int64)
    rank = torch.full_like(found, k)
    for shift in range(8 * dtype.itemsize - _DIGIT, -1, -_DIGIT):
        counts = scan(
            _DigitCount(rows, dtype, shift, found), torch.add, torch.zeros((), dtype=torch.int64)
        )
        from_above = counts.flip(-1).cumsum(-1)
        place = (from_above < rank[:, None]).sum(-1)
        digit = counts.shape[-1] - 1 - place
        rank -= (from_above - counts.flip(-1)).gather(-1, place[:, None]).squeeze(-1)
        found = (found << _DIGIT) | digit
    return found.to(_INTEGERS[dtype]).view(dtype)


@dataclass(frozen=True)
class _DigitCount:
    """Counts, an expert, of the next 16 bits among magnitudes whose higher bits are `found`."""

    rows: Callable[[Piece], torch.Tensor]
    dtype: torch.dtype
    shift: int
    found: torch.Tensor

    def __call__(self, piece: Piece) -> torch.Tensor:
        values = self.rows(piece).to(self.dtype).abs().unsqueeze(-1).flatten(1)
        keys = values.view(_INTEGERS[self.dtype])
        return torch.stack(
            [self._count(row, int(high)) for row, high in zip(keys, self.found, strict=True)]
        )

    def _count(self, keys: torch.Tensor, high: int) -> torch.Tensor:
        digits = keys >> self.shift
        if self.shift + _DIGIT < 8 * self.dtype.itemsize:
            digits = digits[(digits >> _DIGIT) == high] & (2**_DIGIT - 1)
        return torch.bincount(digits, minlength=2**_DIGIT)


def _widest(scan: Scan) -> torch.dtype:
    dtypes = {scan.operands.dtype(info.name) for info in scan.infos}
    return torch.float64 if torch.float64 in dtypes else torch.float32


def trimmed(task_vectors: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Zero every entry whose magnitude is below its expert's threshold; equal ones are kept."""
    column = thresholds.reshape(-1, *[1] * (task_vectors.ndim - 1))
    return task_vectors.where(task_vectors.abs() >= column, 0)


def elected_sign(rows: torch.Tensor, tie: float) -> torch.Tensor:
    """Return the sign of the sum over experts; where that is exactly zero, the sign `tie`."""
    sign = in_order(rows).sign()
    return sign.where(sign != 0, tie)


def agreeing(rows: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Tell which entries have the elected sign; zeros never do."""
    return rows * sign > 0
