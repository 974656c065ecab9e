"""The operands of a piece as loops take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusion_core.weights import CompiledFunction
from fusion_kernels.loops import AS_STORED, BF16, FP16, FP32, MINUS_BASE, PLUS_BASE, Parts

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo
    from fusion_kernels.loops import Floats

_KINDS = {torch.float32: FP32, torch.bfloat16: BF16, torch.float16: FP16}
#: Strips of more experts would not stay in the cache.
_MOST_EXPERTS = 64


class TaskVectorFunction(CompiledFunction):
    """A function of task vectors that serves all options."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401, ARG002
        """Serve every tensor that has a base."""
        return operands.base is not None and can_read(operands, info)


def can_read(operands: Operands, info: TensorInfo) -> bool:
    """Tell whether the loops can read a tensor of all models: floats of at most 32 bits.

    A piece with NaN or infinity is left to the torch code, so the policy must refuse them.
    """
    models = [*([] if operands.base is None else [operands.base]), *operands.experts.values()]
    return (
        operands.finite
        and len(operands.experts) <= _MOST_EXPERTS
        and all(model.infos[info.name].dtype in _KINDS for model in models)
    )


def read_parts(piece: Piece, *, relative: bool) -> tuple[Parts, list[torch.Tensor]]:
    """Read a piece's experts or, if `relative`, what their task vectors need.

    Also returns the tensors, which own the memory. Where no base is needed, an expert stands in.
    """
    base, experts = piece.operands.base, [*piece.operands.experts.values()]
    change = MINUS_BASE if relative else PLUS_BASE
    modes = [AS_STORED if expert.is_delta == relative else change for expert in experts]
    tensors = [piece.stored(expert).contiguous() for expert in experts]
    needs_base = relative or PLUS_BASE in modes
    if base is not None and needs_base:
        tensors.append(piece.stored(base).contiguous())
    addresses = np.array([tensor.data_ptr() for tensor in tensors], np.int64)
    kinds = np.array([_KINDS[tensor.dtype] for tensor in tensors], np.int64)
    count, last = len(experts), len(tensors) - 1
    parts = Parts(
        int(addresses[last]),
        int(kinds[last]),
        addresses[:count],
        kinds[:count],
        np.array(modes, np.int64),
        piece.stop - piece.start,
    )
    return parts, tensors


def weights_of(piece: Piece) -> Floats:
    """Return the experts' weights, as `piece.weights` holds them."""
    return np.array(piece.operands.weights or (1.0,) * len(piece.names), np.float32)
