"""Weighted sums: `fusion_core.weights.Linear`, in which averages and task arithmetic end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_core.weights import CompiledFunction
from fusion_kernels.loops import LARGEST, STRIP, Floats, Parts, add_weighted, compiled, read_strip
from fusion_kernels.operands import can_read, read_parts

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo


class WeightedSum(CompiledFunction):
    """base + sum of factor * task vector, or the sum of factor * expert, with constant factors."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve tensors with one number per expert."""
        linear = function.__self__
        is_constant = isinstance(_factors(linear, info.name), tuple)
        return is_constant and _can_sum(linear, operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Combine one piece."""
        return _sum_weighted(function.__self__, piece)


class SurveyedSum(CompiledFunction):
    """The merge of `slerp`, `model-stock` and their kin, whose survey returned a weighted sum."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve every tensor."""
        return _can_sum(function.__self__, operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Combine one piece."""
        return _sum_weighted(piece.state, piece)


class Average(CompiledFunction):
    """The merge of `simple-average`: the sum of the experts, divided by their number."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401, ARG002
        """Serve every tensor."""
        is_whole = operands.base is not None or not any(
            expert.is_delta for expert in operands.experts.values()
        )
        return is_whole and can_read(operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Average one piece."""
        parts, _tensors = read_parts(piece, relative=False)
        merged = torch.empty(piece.shape)
        ones = np.ones(len(piece.names), np.float32)
        is_finite = _combine(parts, ones, False, merged.view(-1).numpy())
        return merged.div_(len(piece.names)) if is_finite else None


def _can_sum(linear: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
    has_base = operands.base is not None or not linear.relative
    return has_base and can_read(operands, info)


def _factors(linear: Any, name: str) -> Any:  # noqa: ANN401 - a tuple or a tensor
    values = linear.coefficients
    return values if isinstance(values, tuple) else values[name]


def _sum_weighted(linear: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
    parts, _tensors = read_parts(piece, relative=linear.relative)
    factors = np.array(_factors(linear, piece.info.name), np.float32)
    merged = torch.empty(piece.shape)
    is_finite = _combine(parts, factors, linear.relative, merged.view(-1).numpy())
    return merged if is_finite else None


@compiled
def _combine(parts: Parts, factors: Floats, relative: bool, merged: Floats) -> np.bool_:  # noqa: FBT001
    """Combine a piece; false if an operand is not finite."""
    base = np.empty(STRIP, np.float32)
    rows = np.empty((len(parts.experts), STRIP), np.float32)
    largest = np.uint32(0)
    for start in range(0, parts.elements, STRIP):
        size = min(STRIP, parts.elements - start)
        total = merged[start : start + size]
        largest = max(largest, read_strip(parts, start, size, base, rows))
        add_weighted(rows, factors, size, total)
        if relative:
            for i in range(size):
                total[i] += base[i]
    return largest <= LARGEST
