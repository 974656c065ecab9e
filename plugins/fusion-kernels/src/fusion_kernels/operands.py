"""The operands of a piece as loops take them."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.weights import CompiledFunction
from fusion_kernels.layout import (
    AS_STORED,
    BF16,
    CHUNK,
    FP16,
    FP32,
    MINUS_BASE,
    OWN_STRIPS,
    PLUS_BASE,
    STRIP_BYTES,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core.weights import Operands, Piece, TensorInfo, WeightSource

_libc = ctypes.CDLL(None) if os.name == "posix" else None
_function = getattr(_libc, "pread64", None) or getattr(_libc, "pread", None)
#: The address of the C library's `pread`; 0 where there is none.
_PREAD = ctypes.cast(_function, ctypes.c_void_p).value or 0 if _function else 0
#: A model's numbers in the layout, and what owns its memory.
_Record = tuple[tuple[int, ...], torch.Tensor | None]
_NO_RECORD: _Record = (0, FP32, AS_STORED, -1, 0), None
_KINDS = {torch.float32: FP32, torch.bfloat16: BF16, torch.float16: FP16}
#: Strips of more experts would not stay in the cache.
_MOST_EXPERTS = 64


class TaskVectorFunction(CompiledFunction):
    """A function of task vectors that serves all options."""

    def fits(self, function: Any, operands: Operands, info: TensorInfo) -> bool:  # noqa: ANN401, ARG002
        """Serve every tensor that has a base."""
        return operands.base is not None and can_read(operands, info)


class AnyRangeFunction(CompiledFunction):
    """A function whose result does not depend on where a piece ends."""

    def blocks_at_once(self, function: Any, piece: Piece) -> int:  # noqa: ANN401, ARG002
        """Return two if the loop reads all models from files: it holds a small part of them."""
        models = piece.operands.models
        in_files = _PREAD and all(piece.file_range(model) is not None for model in models)
        return 2 if in_files else 1


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
    return (
        operands.finite
        and len(operands.experts) <= _MOST_EXPERTS
        and all(model.infos[info.name].dtype in _KINDS for model in operands.models)
    )


def read_parts(piece: Piece, *, relative: bool) -> Parts:
    """Lay out a piece's experts or, if `relative`, what their task vectors need."""
    base, experts = piece.operands.base, [*piece.operands.experts.values()]
    change = MINUS_BASE if relative else PLUS_BASE
    modes = [AS_STORED if expert.is_delta == relative else change for expert in experts]
    records = [_record(piece, expert, mode) for expert, mode in zip(experts, modes, strict=True)]
    needs_base = relative or PLUS_BASE in modes
    origin = _NO_RECORD if base is None or not needs_base else _record(piece, base, AS_STORED)
    flags = (int(origin is not _NO_RECORD), int(PLUS_BASE in modes))
    return _parts([origin, *records], piece.stop - piece.start, flags, _KINDS[_result_dtype(piece)])


def _record(piece: Piece, model: WeightSource, mode: int) -> _Record:
    dtype = model.infos[piece.info.name].dtype
    span = piece.file_range(model) if _PREAD else None
    if span is not None:
        return (0, _KINDS[dtype], mode, *span), None
    values = piece.stored(model).contiguous()
    return (values.data_ptr(), _KINDS[values.dtype], mode, -1, 0), values


def empty_result(piece: Piece) -> torch.Tensor:
    """Return memory for the merge of a piece, in the dtype in which its loop writes it."""
    return torch.empty(piece.shape, dtype=_result_dtype(piece))


def _result_dtype(piece: Piece) -> torch.dtype:
    return piece.stored_dtype if piece.stored_dtype in _KINDS else torch.float32


def parts_of(rows: torch.Tensor) -> Parts:
    """Lay out rows, of shape (n, ...) in fp32, as if they were task vectors."""
    rows = rows.contiguous()
    records = [((row.data_ptr(), FP32, AS_STORED, -1, 0), rows) for row in rows]
    return _parts([_NO_RECORD, *records], rows[0].numel(), (0, 0), FP32)


def _parts(records: Sequence[_Record], elements: int, flags: tuple[int, int], kind: int) -> Parts:
    """Lay out the base and experts, with memory for what is read from files."""
    experts = len(records) - 1
    layout = [elements, experts, *flags, kind, _PREAD]
    for numbers, _ in records:
        layout += numbers
    packed = (ctypes.c_int64 * len(layout))(*layout)
    strips = (OWN_STRIPS + experts) * STRIP_BYTES // 4
    scratch = torch.empty(strips + (experts + 1) * CHUNK)
    ctypes.memset(scratch.data_ptr(), 0, 4 * strips)
    owners = (packed, scratch, *(owner for _, owner in records))
    return Parts(ctypes.addressof(packed), scratch.data_ptr(), owners)


def weights_of(piece: Piece) -> torch.Tensor:
    """Return the experts' weights, as `piece.weights` holds them."""
    return as_floats(piece.operands.weights or (1.0,) * len(piece.names))


def as_floats(numbers: Sequence[float]) -> torch.Tensor:
    """Return numbers in fp32, rounded."""
    return torch.tensor(numbers, dtype=torch.float32)
