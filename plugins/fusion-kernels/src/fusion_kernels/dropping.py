"""DARE: entries of task vectors that are kept at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_core import expert_values
from fusion_core.weights import broadcast_per_expert
from fusion_kernels.loops import LARGEST, STRIP, ZERO, Floats, Parts, compiled, read_strip
from fusion_kernels.operands import TaskVectorFunction, read_parts

if TYPE_CHECKING:
    import numpy.typing as npt

    from fusion_core.weights import Piece


class RandomEntries(TaskVectorFunction):
    """The rows of `drop`: each entry with probability `density`, by the generator of the engine."""

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Keep entries of one piece, and rescale them."""
        config = function.__self__.config
        densities = expert_values(config.density, piece.names, "density")
        seeds = [piece.seed(expert) for expert in range(len(piece.names))]
        parts, _tensors = read_parts(piece, relative=True)
        chosen = torch.empty((len(piece.names), *piece.shape))
        is_finite = _keep(
            parts,
            np.array(seeds, np.int64).view(np.uint64),
            np.array(densities, np.float32),
            piece.start,
            chosen.view(len(piece.names), -1).numpy(),
        )
        if not is_finite:
            return None
        if config.rescale == "l1":
            return chosen.mul_(broadcast_per_expert(piece.state, chosen))
        if config.rescale == "paper":
            for row, density in zip(chosen, densities, strict=True):
                row.div_(density or 1)
        return chosen


@compiled
def _keep(
    parts: Parts, seeds: npt.NDArray[np.uint64], limits: Floats, first: int, chosen: Floats
) -> np.bool_:
    """Keep the entries of a piece that starts at element `first`; false if one is not finite."""
    base = np.empty(STRIP, np.float32)
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    largest = np.uint32(0)
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        largest = max(largest, read_strip(parts, start, size, base, rows))
        for expert in range(len(rows)):
            row, seed, limit = rows[expert], seeds[expert], limits[expert]
            target = chosen[expert][start : start + size]
            for i in range(size):
                bits = np.uint64(first + start + i) * np.uint64(0x9E3779B97F4A7C15) + seed
                bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                bits = (bits ^ (bits >> np.uint64(31))) >> np.uint64(40)
                number = np.float32(np.int32(bits)) * np.float32(2.0**-24)
                target[i] = row[i] if number < limit else row[i] * ZERO
    return largest <= LARGEST
