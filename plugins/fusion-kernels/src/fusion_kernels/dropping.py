"""DARE and DELLA: entries of task vectors that are kept at random."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from fusion_core import expert_values
from fusion_core.weights import broadcast_per_expert
from fusion_kernels.keeping import KeepingFunction
from fusion_kernels.machine_code import load_loop
from fusion_kernels.operands import as_floats, read_parts

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo

#: The numbers per entry, and the other numbers, that the sort of a row needs.
_SORTED, _COUNTERS = 2, 256


class _Random(KeepingFunction):
    """Each entry with probability `density`, by the generator of the engine."""

    def __init__(self) -> None:
        self._keep = load_loop("dropping", "keep_at_random")

    def run(self, function: Any, piece: Piece, chosen: int, sums: int) -> int:  # noqa: ANN401
        """Call the loop."""
        limits, seeds = as_floats(_densities(function, piece)), _seeds(piece)
        parts = read_parts(piece, relative=True)
        return self._keep(
            parts.layout,
            parts.scratch,
            seeds.data_ptr(),
            limits.data_ptr(),
            piece.start,
            chosen,
            sums,
        )


class RandomEntries(_Random):
    """The rows of `drop`."""

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Keep entries of one piece, and rescale them."""
        chosen, rescale = self.entries(function, piece), function.__self__.config.rescale
        if chosen is None:
            return None
        if rescale == "l1":
            return chosen.mul_(broadcast_per_expert(piece.state, chosen))
        if rescale == "paper":
            for row, density in zip(chosen, _densities(function, piece), strict=True):
                row.div_(density or 1)
        return chosen


class RandomSums(_Random):
    """The sums of magnitudes that `drop` needs for `rescale: l1`."""

    __call__ = _Random.sums


class _Ranked(KeepingFunction):
    """Each entry with the probability of its rank in a row."""

    def __init__(self) -> None:
        self._keep = load_loop("pruning", "keep_by_rank")

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve tensors that have entries."""
        return info.numel > 0 and super().fits(function, operands, info)

    def run(self, function: Any, piece: Piece, chosen: int, sums: int) -> int:  # noqa: ANN401
        """Call the loop, which needs memory for kept entries in any case."""
        method, experts = function.__self__, len(piece.names)
        length = math.prod(piece.shape[1:]) if len(piece.shape) > 1 else piece.stop - piece.start
        probabilities = method.by_rank(piece.names, length, torch.float32)
        memory = torch.empty(_SORTED * length + _COUNTERS, dtype=torch.int64)
        parts, seeds = read_parts(piece, relative=True), _seeds(piece)
        entries = torch.empty((experts, *piece.shape) if sums else 0)
        return self._keep(
            parts.layout,
            parts.scratch,
            length,
            probabilities.data_ptr(),
            seeds.data_ptr(),
            piece.start,
            method.config.rescale == "paper" and not sums,
            chosen or entries.data_ptr(),
            memory.data_ptr(),
            sums,
        )


class RankedEntries(_Ranked):
    """The rows of `magprune`."""

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Keep entries of one piece, and rescale them."""
        chosen = self.entries(function, piece)
        if chosen is not None and function.__self__.config.rescale == "l1":
            chosen.mul_(broadcast_per_expert(piece.state, chosen))
        return chosen


class RankedSums(_Ranked):
    """The sums of magnitudes that `magprune` needs for `rescale: l1`."""

    __call__ = _Ranked.sums


def _densities(function: Any, piece: Piece) -> tuple[float, ...]:  # noqa: ANN401
    return expert_values(function.__self__.config.density, piece.names, "density")


def _seeds(piece: Piece) -> torch.Tensor:
    return torch.tensor([piece.seed(expert) for expert in range(len(piece.names))])
