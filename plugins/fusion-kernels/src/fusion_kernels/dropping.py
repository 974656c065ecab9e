"""DARE: entries of task vectors that are kept at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core import expert_values
from fusion_core.weights import broadcast_per_expert
from fusion_kernels.machine_code import load_loop
from fusion_kernels.operands import TaskVectorFunction, as_floats, read_parts

if TYPE_CHECKING:
    from fusion_core.weights import Piece


class RandomEntries(TaskVectorFunction):
    """The rows of `drop`: each entry with probability `density`, by the generator of the engine."""

    def __init__(self) -> None:
        self._keep = load_loop("dropping", "keep_at_random")

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Keep entries of one piece, and rescale them."""
        config = function.__self__.config
        densities = expert_values(config.density, piece.names, "density")
        seeds = torch.tensor([piece.seed(expert) for expert in range(len(piece.names))])
        parts, limits = read_parts(piece, relative=True), as_floats(densities)
        chosen = torch.empty((len(piece.names), *piece.shape))
        is_finite = self._keep(
            parts.layout,
            parts.scratch,
            seeds.data_ptr(),
            limits.data_ptr(),
            piece.start,
            chosen.data_ptr(),
        )
        if not is_finite:
            return None
        if config.rescale == "l1":
            return chosen.mul_(broadcast_per_expert(piece.state, chosen))
        if config.rescale == "paper":
            for row, density in zip(chosen, densities, strict=True):
                row.div_(density or 1)
        return chosen
