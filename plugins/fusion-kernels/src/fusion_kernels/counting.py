"""The search for thresholds: how many magnitudes lie above a window, and which lie inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights import call_on_piece
from fusion_kernels.machine_code import load_loop
from fusion_kernels.operands import (
    AnyRangeFunction,
    TaskVectorFunction,
    parts_of,
    read_parts,
    weights_of,
)

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo


class WindowCounts(AnyRangeFunction, TaskVectorFunction):
    """`WindowCount` of task vectors, or of what another function returns."""

    def __init__(self) -> None:
        self._count = load_loop("counting", "count")

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve magnitudes in fp32."""
        return function.dtype is torch.float32 and super().fits(function, operands, info)

    def blocks_at_once(self, function: Any, piece: Piece) -> int:  # noqa: ANN401
        """Return one for another function's rows, which are in memory."""
        return super().blocks_at_once(function, piece) if function.of_task_vectors else 1

    def __call__(self, function: Any, piece: Piece) -> list[Any] | None:  # noqa: ANN401
        """Count one block, in one window per search; several searches may be of one row."""
        searches = function.searches
        if function.of_task_vectors:
            parts = read_parts(piece, relative=True)
        else:
            parts = parts_of(call_on_piece(function.rows, piece))
        windows = torch.tensor([[search.low, search.high] for search in searches])
        counts = torch.zeros((2, len(searches)), dtype=torch.int64)
        offsets = torch.empty((len(searches), piece.stop - piece.start), dtype=torch.int32)
        is_finite = self._count(
            parts.layout,
            parts.scratch,
            len(searches),
            windows.data_ptr(),
            counts.data_ptr(),
            offsets.data_ptr(),
        )
        if not is_finite:
            return None
        above, inside = counts.tolist()
        return [
            function.tally(search, *counted, offsets[search])
            for search, counted in enumerate(zip(above, inside, strict=True))
        ]


class WindowPolls(AnyRangeFunction, TaskVectorFunction):
    """`WindowPoll`: the same in one window per expert, and votes."""

    def __init__(self) -> None:
        self._poll = load_loop("polling", "poll")

    def __call__(self, function: Any, piece: Piece) -> Any | None:  # noqa: ANN401
        """Poll one block. The result owns no more memory than it needs: many are kept."""
        experts = len(piece.names)
        parts = read_parts(piece, relative=True)
        weights = weights_of(piece)
        counts = torch.zeros(2 * experts + 2, dtype=torch.int64)
        room = piece.stop - piece.start + 1  # a magnitude is written before it is known to fit
        bins = torch.empty(experts * room, dtype=torch.int32)
        changes = torch.empty(experts * room, dtype=torch.int8)
        crowded = torch.empty((room, experts))
        is_finite = self._poll(
            parts.layout,
            parts.scratch,
            function.windows.data_ptr(),
            weights.data_ptr(),
            counts.data_ptr(),
            bins.data_ptr(),
            changes.data_ptr(),
            crowded.data_ptr(),
        )
        if not is_finite:
            return None
        *numbers, votes, crowd = counts.tolist()
        above, inside = numbers[:experts], numbers[experts:]
        listed = sum(inside)
        return function.block(
            above,
            inside,
            bins[:listed].clone(),
            changes[:listed].clone(),
            votes,
            crowded[:crowd].T.clone(),
        )
