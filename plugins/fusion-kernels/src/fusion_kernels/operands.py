"""The operands of a piece as compiled loops take them: addresses, dtypes, and what to do first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fusion_kernels.loops import AS_STORED, BF16, FP16, FP32, MINUS_BASE, PLUS_BASE

if TYPE_CHECKING:
    from fusion_core.weights import Operands, Piece, TensorInfo

_KINDS = {torch.float32: FP32, torch.bfloat16: BF16, torch.float16: FP16}
#: Loops allocate a strip per expert.
_MOST_EXPERTS = 64


@dataclass(frozen=True)
class Addresses:
    """The operands of one piece. `tensors` keeps their memory.

    Without need of a base, `base` is any operand.
    """

    base: int
    base_kind: int
    experts: np.ndarray
    kinds: np.ndarray
    #: what to do with each expert after it is read
    modes: np.ndarray
    count: int
    tensors: tuple[torch.Tensor, ...]


def can_read(operands: Operands, info: TensorInfo) -> bool:
    """Tell whether the loops can read the operands of a tensor: floats of at most 32 bits.

    NaN and infinity are left to the torch code, which is why the policy must refuse them.
    """
    models = [*([] if operands.base is None else [operands.base]), *operands.experts.values()]
    return (
        operands.finite
        and len(operands.experts) <= _MOST_EXPERTS
        and all(model.infos[info.name].dtype in _KINDS for model in models)
    )


def read_addresses(piece: Piece, *, relative: bool) -> Addresses:
    """Read a piece's operands: as task vectors, if `relative`, or else as experts."""
    base, experts = piece.operands.base, [*piece.operands.experts.values()]
    change = MINUS_BASE if relative else PLUS_BASE
    modes = [AS_STORED if expert.is_delta == relative else change for expert in experts]
    tensors = [piece.stored(expert).contiguous() for expert in experts]
    kinds = [_KINDS[tensor.dtype] for tensor in tensors]
    addresses = [tensor.data_ptr() for tensor in tensors]
    needs_base = base is not None and (relative or PLUS_BASE in modes)
    base_values = piece.stored(base).contiguous() if needs_base else tensors[0]
    return Addresses(
        base_values.data_ptr(),
        _KINDS[base_values.dtype],
        np.array(addresses, np.int64),
        np.array(kinds, np.int64),
        np.array(modes, np.int64),
        piece.stop - piece.start,
        (base_values, *tensors),
    )
