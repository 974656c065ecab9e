"""Sums over a piece, in an order that torch and compiled code have on every processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fusion_core.weights import Piece, Scan

#: Elements of a strip, a power of two.
_STRIP = 1024


def sum_in_strips(rows: Tensor) -> Tensor:
    """Return the sum of each row in fp64, on the CPU: of shape (n,) for rows of shape (n, ...).

    Rows are cut into strips of 1024 entries; the last is filled up with zeros. The second half of a
    strip is added to its first half, until one number is left. The numbers of the strips are added
    in their order.
    """
    flat = rows.unsqueeze(-1).flatten(1)
    count = -(-flat.shape[1] // _STRIP)
    if missing := count * _STRIP - flat.shape[1]:
        flat = pad(flat, (0, missing))
    halves = flat.reshape(len(rows), count, 2, _STRIP // 2)
    sums = halves[..., 0, :].double().add_(halves[..., 1, :])
    while (half := sums.shape[-1] // 2) > 0:
        sums = sums[..., :half] + sums[..., half:]
    strips = sums.squeeze(-1).cpu()
    return pad(strips, (1, 0)).cumsum(1)[:, -1]


def sum_magnitudes(before: Tensor, after: Tensor) -> Tensor:
    """Return each expert's sums of magnitudes, of shape (2, experts): for `l1_factors`."""
    return torch.stack([sum_in_strips(rows.abs()) for rows in (before, after)])


def l1_factors(scan: Scan, sums: Callable[[Piece], Tensor]) -> Tensor:
    """Return the factors that restore each expert's sum of magnitudes, of shape (experts,).

    `sums(piece)` returns the `sum_magnitudes` of the task vectors before and after entries are
    dropped. An expert without any entry left has the factor 1.
    """
    zeros = torch.zeros(2, len(scan.operands.experts), dtype=torch.float64)
    before, after = scan(sums, torch.add, zeros)
    return torch.where(after > 0, before / after, 1.0)
