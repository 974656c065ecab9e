"""Weighted sums: `fusion_core.weights.Linear`, in which averages and task arithmetic end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_kernels.machine_code import load_loop
from fusion_kernels.operands import AnyRangeFunction, as_floats, can_read, empty_result, read_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from fusion_core.weights import Operands, Piece, TensorInfo


class _Sum(AnyRangeFunction):
    """A function that ends in a weighted sum."""

    def __init__(self) -> None:
        self._combine = load_loop("linear", "combine")

    def sum(
        self, piece: Piece, factors: Sequence[float], *, relative: bool, divisor: float = 1.0
    ) -> torch.Tensor | None:
        """Combine the experts or, if `relative`, the base and the task vectors of a piece."""
        parts = read_parts(piece, relative=relative)
        weights, merged = as_floats(factors), empty_result(piece)
        is_finite = self._combine(
            parts.layout, parts.scratch, weights.data_ptr(), relative, divisor, merged.data_ptr()
        )
        return merged if is_finite else None


class WeightedSum(_Sum):
    """base + sum of factor * task vector, or the sum of factor * expert, with constant factors."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve tensors with one number per expert."""
        linear = function.__self__
        is_constant = isinstance(_factors(linear, info.name), tuple)
        return is_constant and _can_sum(linear, operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401
        """Combine one piece."""
        linear = function.__self__
        factors = _factors(linear, piece.info.name)
        return self.sum(piece, factors, relative=linear.relative)


class SurveyedSum(_Sum):
    """The merge of `slerp`, `model-stock` and their kin, whose survey returned a weighted sum."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
        """Serve every tensor."""
        return _can_sum(function.__self__, operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Combine one piece."""
        factors = _factors(piece.state, piece.info.name)
        return self.sum(piece, factors, relative=piece.state.relative)


class Average(_Sum):
    """The merge of `simple-average`: the sum of the experts, divided by their number."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401, ARG002
        """Serve every tensor."""
        is_whole = operands.base is not None or not any(
            expert.is_delta for expert in operands.experts.values()
        )
        return is_whole and can_read(operands, info)

    def __call__(self, function: Any, piece: Piece) -> torch.Tensor | None:  # noqa: ANN401, ARG002
        """Average one piece."""
        count = len(piece.names)
        return self.sum(piece, (1.0,) * count, relative=False, divisor=count)


def _can_sum(linear: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401
    has_base = operands.base is not None or not linear.relative
    return has_base and can_read(operands, info)


def _factors(linear: Any, name: str) -> Any:  # noqa: ANN401 - a tuple or a tensor
    values = linear.coefficients
    return values if isinstance(values, tuple) else values[name]
