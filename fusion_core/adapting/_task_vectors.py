"""Where a live merge keeps task vectors: in memory as one matrix a parameter, or on disk.

Both give two products with the same rows that the final merge combines: coefficients @ rows, which
is the merge, and rows @ gradient, which is the gradient of the coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from fusion_core.weights import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fusion_core.weights import MergedSource, Piece


class WithRows(Protocol):
    """A kernel that combines rows linearly, as `fusion_core.weights.Linear` does."""

    def rows(self, piece: Piece) -> Tensor:
        """Return what is combined, of shape (experts, ...)."""


class TaskVectors(Protocol):
    """One parameter's base and task vectors."""

    def merge(self, coefficients: Tensor, out: Tensor) -> None:
        """Write base + coefficients @ task vectors into `out`, of shape (elements,)."""

    def project(self, gradient: Tensor) -> Tensor:
        """Return task vectors @ gradient: (elements,) -> (experts,), in the gradient's dtype."""


@dataclass(frozen=True)
class Resident:
    """Task vectors in memory."""

    #: shape (elements,), in the dtype to compute in
    base: Tensor
    #: shape (experts, elements), in the same dtype or in bf16
    rows: Tensor

    def merge(self, coefficients: Tensor, out: Tensor) -> None:
        """Add to the base what a product of a matrix and a vector gives."""
        for part, rows in self._blocks():
            torch.addmv(self.base[part], rows.T, coefficients, out=out[part])

    def project(self, gradient: Tensor) -> Tensor:
        """Return one product of a matrix and a vector."""
        parts = [rows @ gradient[part] for part, rows in self._blocks()]
        return torch.stack(parts).sum(dim=0)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Go over the rows in the dtype to compute in: bf16 is widened a block at a time."""
        if self.rows.dtype is self.base.dtype:
            yield slice(None), self.rows
            return
        for start in range(0, len(self.base), BLOCK):
            part = slice(start, start + BLOCK)
            yield part, self.rows[:, part].to(self.base.dtype)


@dataclass(frozen=True)
class OnDisk:
    """Task vectors that are read whenever they are needed: memory does not grow with experts."""

    merged: MergedSource
    kernel: WithRows
    name: str

    def merge(self, coefficients: Tensor, out: Tensor) -> None:
        """Read base and task vectors piece by piece and combine them."""
        for part, piece in self._pieces():
            base, rows = _placed(piece.base, out), _placed(rows_of(self.kernel, piece), out)
            torch.addmv(base.reshape(-1), rows.T, coefficients, out=out[part])

    def project(self, gradient: Tensor) -> Tensor:
        """Read the task vectors piece by piece and sum their products, in order."""
        parts = [
            _placed(rows_of(self.kernel, piece), gradient) @ gradient[part]
            for part, piece in self._pieces()
        ]
        return torch.stack(parts).sum(dim=0)

    def _pieces(self) -> Iterator[tuple[slice, Piece]]:
        return pieces_of(self.merged, self.name)


def resident(
    merged: MergedSource, kernel: WithRows, name: str, *, like: Tensor, dtype: torch.dtype
) -> Resident:
    """Read one parameter's base and task vectors, these in `dtype`, to where `like` is."""
    numel = merged.infos[name].numel
    base = torch.empty(numel, dtype=like.dtype, device=like.device)
    rows = torch.empty((len(merged.operands.experts), numel), dtype=dtype, device=like.device)
    for part, piece in pieces_of(merged, name):
        base[part] = piece.base.reshape(-1)
        rows[:, part] = rows_of(kernel, piece).to(dtype)
    return Resident(base, rows)


def rows_of(kernel: WithRows, piece: Piece) -> Tensor:
    """Return a piece's task vectors, shape (experts, elements); one element may be the tensor."""
    return kernel.rows(piece).unsqueeze(-1).flatten(1)


def pieces_of(merged: MergedSource, name: str) -> Iterator[tuple[slice, Piece]]:
    """Go over a tensor in the pieces that the engine, too, merges."""
    for start, stop in merged.cut.ranges(merged.infos[name]):
        yield slice(start, stop), merged.piece(name, start, stop)


def _placed(values: Tensor, like: Tensor) -> Tensor:
    return values.to(device=like.device, dtype=like.dtype)
