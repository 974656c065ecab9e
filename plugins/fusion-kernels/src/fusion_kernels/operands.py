"""The operands of a piece as loops take them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights import CompiledFunction
from fusion_kernels.layout import (
    AS_STORED,
    BF16,
    FP16,
    FP32,
    MINUS_BASE,
    OWN_STRIPS,
    PLUS_BASE,
    STRIP_BYTES,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights import Operands, Piece, TensorInfo

_KINDS = {torch.float32: FP32, torch.bfloat16: BF16, torch.float16: FP16}
#: Strips of more experts would not stay in the cache.
_MOST_EXPERTS = 64


class TaskVectorFunction(CompiledFunction):
    """A function of task vectors that serves all options."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401, ARG002
        """Serve every tensor that has a base."""
        return operands.base is not None and can_read(operands, info)


@dataclass(frozen=True)
class Parts:
    """The first two arguments of every loop: addresses of a piece's layout and scratch memory."""

    layout: int
    scratch: int
    #: what owns the memory
    owners: tuple[object, ...]


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


def read_parts(piece: Piece, *, relative: bool) -> Parts:
    """Read a piece's experts or, if `relative`, what their task vectors need.

    Where no base is needed, an expert stands in.
    """
    base, experts = piece.operands.base, [*piece.operands.experts.values()]
    change = MINUS_BASE if relative else PLUS_BASE
    modes = [AS_STORED if expert.is_delta == relative else change for expert in experts]
    tensors = [piece.stored(expert).contiguous() for expert in experts]
    if base is not None and (relative or PLUS_BASE in modes):
        tensors.append(piece.stored(base).contiguous())
    return _parts(tensors, modes, _result_kind(piece))


def empty_result(piece: Piece) -> torch.Tensor:
    """Return memory for the merge of a piece, as its loop writes it: in bf16 or fp32."""
    return torch.empty(
        piece.shape, dtype=torch.bfloat16 if _result_kind(piece) == BF16 else torch.float32
    )


def _result_kind(piece: Piece) -> int:
    return BF16 if piece.stored_dtype is torch.bfloat16 else FP32


def parts_of(rows: torch.Tensor) -> Parts:
    """Return rows, of shape (n, ...) in fp32, in the place of task vectors."""
    return _parts([*rows.contiguous()], [AS_STORED] * len(rows), FP32)


def _parts(tensors: Sequence[torch.Tensor], modes: Sequence[int], kind: int) -> Parts:
    """Lay out experts by their modes, and a merge by its kind. The last tensor is the base."""
    layout = [tensors[0].numel(), len(modes), int(PLUS_BASE in modes), kind]
    for tensor, mode in zip([tensors[-1], *tensors], [AS_STORED, *modes], strict=False):
        layout += [tensor.data_ptr(), _KINDS[tensor.dtype], mode]
    packed = (ctypes.c_int64 * len(layout))(*layout)
    scratch = torch.zeros((OWN_STRIPS + len(modes)) * STRIP_BYTES // 4)
    return Parts(ctypes.addressof(packed), scratch.data_ptr(), (packed, scratch, tensors))


def weights_of(piece: Piece) -> torch.Tensor:
    """Return the experts' weights, as `piece.weights` holds them."""
    return as_floats(piece.operands.weights or (1.0,) * len(piece.names))


def as_floats(numbers: Sequence[float]) -> torch.Tensor:
    """Return numbers in fp32, rounded."""
    return torch.tensor(numbers, dtype=torch.float32)
