"""Task vectors of a live merge: in memory as one matrix per parameter, or read in every step.

Two further kinds, `Factored` and `PartlyFactored`, have their own module. All kinds compute two
products with the rows that the final merge combines: coefficients @ rows, the merge, and rows @
gradient, the gradient of the coefficients. `Sharing` says how to compute them, and between which
elements a tensor may be cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from fusion_core.weights import Cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fusion_adapting._row_file import RowFile
    from fusion_adapting._sharing import Sharing
    from fusion_core.weights import MergedSource, Piece


class RowKernel(Protocol):
    """A kernel that combines rows linearly, as `fusion_core.weights.Linear` does."""

    def rows(self, piece: Piece) -> Tensor:
        """Return the rows to combine, of shape (experts, ...)."""


class TaskVectors(Protocol):
    """One parameter's base and task vectors."""

    @property
    def sharing(self) -> Sharing:
        """Which elements share a coefficient."""

    @property
    def storage(self) -> str:
        """How the task vectors are held: "factors", a dtype, both, or "disk"."""

    def merge(self, coefficients: Tensor, out: Tensor) -> None:
        """Write base + coefficients @ task vectors into `out`, of shape (elements,).

        `coefficients` has the shape (experts, count) and is contiguous.
        """

    def project(self, gradient: Tensor) -> Tensor:
        """Return task vectors @ gradient, in its dtype: (elements,) -> (experts, count)."""


@dataclass(frozen=True)
class Resident:
    """Task vectors in memory."""

    sharing: Sharing
    #: shape (elements,), in the dtype in which the base is stored if that is 16 bits wide
    base: Tensor
    #: shape (experts, elements), in the dtype of the computation or in bf16
    rows: Tensor

    @classmethod
    def read(
        cls,
        merged: MergedSource,
        kernel: RowKernel,
        sharing: Sharing,
        *,
        like: Tensor,
        dtype: torch.dtype,
    ) -> Resident:
        """Read one parameter's base, and its task vectors in `dtype`, to the device of `like`."""
        name, numel = sharing.info.name, sharing.info.numel
        base = torch.empty(numel, dtype=_stored_dtype(merged, name, like), device=like.device)
        rows = torch.empty((len(merged.operands.experts), numel), dtype=dtype, device=like.device)
        for part, piece in pieces_of(merged, name):
            base[part] = piece.base.reshape(-1)
            rows[:, part] = rows_of(kernel, piece).to(dtype)
        return cls(sharing, base, rows)

    @property
    def storage(self) -> str:
        """The dtype of the task vectors."""
        return str(self.rows.dtype).removeprefix("torch.")

    def merge(self, coefficients: Tensor, out: Tensor) -> None:
        """Combine base and task vectors."""
        for start, stop, rows in self._blocks(out.dtype):
            merged = out[start:stop].copy_(self.base[start:stop])
            self.sharing.combine(start, merged, rows, coefficients, merged)

    def project(self, gradient: Tensor) -> Tensor:
        """Sum the products of task vectors and gradient."""
        blocks = self._blocks(gradient.dtype)
        parts = [self.sharing.project(rows, gradient[start:stop]) for start, stop, rows in blocks]
        return self.sharing.join(parts)

    def _blocks(self, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the rows in the dtype of the computation; bf16 is widened block by block."""
        if self.rows.dtype is dtype:
            yield 0, len(self.base), self.rows
            return
        for start, stop in self.sharing.cut.ranges(self.sharing.info):
            yield start, stop, self.rows[:, start:stop].to(dtype)


@dataclass(frozen=True)
class OnDisk:
    """Task vectors that are read in every step, so that memory does not grow with experts."""

    sharing: Sharing
    merged: MergedSource
    kernel: RowKernel
    #: holds the task vectors if they take long to compute; None to compute them in every step
    file: RowFile | None = None
    storage = "disk"

    def __post_init__(self) -> None:
        """Compute and write the task vectors if there is a file for them."""
        if self.file is not None:
            for part, piece in self._pieces():
                self.file.write(self.sharing.info.name, part, rows_of(self.kernel, piece))

    def merge(self, coefficients: Tensor, out: Tensor) -> None:
        """Read base and task vectors piece by piece and combine them."""
        for part, piece in self._pieces():
            base, rows = _to_like(piece.base, out), _to_like(self._rows(part, piece), out)
            self.sharing.combine(part.start, base.reshape(-1), rows, coefficients, out[part])

    def project(self, gradient: Tensor) -> Tensor:
        """Read the task vectors piece by piece and join their products in order."""
        parts = [
            self.sharing.project(_to_like(self._rows(part, piece), gradient), gradient[part])
            for part, piece in self._pieces()
        ]
        return self.sharing.join(parts)

    def _rows(self, part: slice, piece: Piece) -> Tensor:
        if self.file is None:
            return rows_of(self.kernel, piece)
        return self.file.read(self.sharing.info.name, part)

    def _pieces(self) -> Iterator[tuple[slice, Piece]]:
        return pieces_of(self.merged, self.sharing.info.name, self.sharing.cut)


def rows_of(kernel: RowKernel, piece: Piece) -> Tensor:
    """Return a piece's task vectors, of shape (experts, elements), also for a scalar tensor."""
    return kernel.rows(piece).unsqueeze(-1).flatten(1)


def _stored_dtype(merged: MergedSource, name: str, values: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor's base is stored if that is 16 bits wide, or `values`'."""
    base = merged.operands.base
    stored = values.dtype if base is None else base.infos[name].dtype
    return stored if stored in {torch.bfloat16, torch.float16} else values.dtype


def pieces_of(
    merged: MergedSource, name: str, cut: Cut = Cut.ELEMENT
) -> Iterator[tuple[slice, Piece]]:
    """Yield a tensor in the pieces that the engine merges, or in coarser ones."""
    for start, stop in merged.cut.coarser(cut).ranges(merged.infos[name]):
        yield slice(start, stop), merged.piece(name, start, stop)


def _to_like(values: Tensor, like: Tensor) -> Tensor:
    return values.to(device=like.device, dtype=like.dtype)
