"""Inner products, on which the factors of `slerp`, `model-stock` and their kin depend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights import CompiledFunction
from fusion_kernels.layout import LANES
from fusion_kernels.machine_code import load_loop
from fusion_kernels.operands import can_read, read_parts

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo


class InnerProducts(CompiledFunction):
    """`InnerProducts` of experts or of task vectors."""

    def __init__(self) -> None:
        self._multiply = load_loop("multiplying", "multiply")

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve rows that the loop reads."""
        has_rows = function.relative is False or (function.relative and operands.base is not None)
        return has_rows and can_read(operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Multiply one block."""
        rows = len(piece.names)
        parts = read_parts(piece, relative=function.relative)
        sums = torch.zeros(rows * (rows + 1) // 2, LANES, dtype=torch.float64)
        products = torch.empty(rows, rows, dtype=torch.float64)
        is_finite = self._multiply(
            parts.layout, parts.scratch, sums.data_ptr(), products.data_ptr()
        )
        return products if is_finite else None
