"""Checkpoints of compressed-tensors, as llm-compressor writes them.

A value is `(code - zero_point) * scale`, computed in the dtype of the scale as in that library. A
scale of nvfp4 is divided by the tensor's global scale first. Scales of mxfp4 and mxfp8 are
exponents of two with the bias 127.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from formats_quantised.encodings import RowEncoding, read_columns, unpack_bits
from formats_quantised.fp4 import FP4_VALUES

if TYPE_CHECKING:
    from formats_quantised.encodings import Rectangle
    from formats_quantised.grids import Grid
    from fusion_core.weights import WeightSource

_BIAS = 127


@dataclass(frozen=True)
class Compressed(RowEncoding):
    """A matrix with scales and, in some formats, zero points and a global scale."""

    #: the tensor with the codes: fp8 or int8, words of packed integers, or bytes of packed fp4
    codes: str
    bits: int
    scales: Grid
    #: zero points of the same blocks as the scales
    zeros: Grid | None = None
    #: whether a word of zero points holds those of several rows
    has_packed_zeros: bool = False
    global_scale: str | None = None

    def read_rectangle(self, stored: WeightSource, part: Rectangle) -> torch.Tensor:
        """Compute `(code - zero_point) * scale` in the dtype of the scale."""
        scales = self._read_scales(stored, part)
        codes = self._read_codes(stored, part)
        is_fp4 = stored.infos[self.codes].dtype is torch.uint8
        values = FP4_VALUES[codes.int()].to(scales.dtype) if is_fp4 else codes.to(scales.dtype)
        if self.zeros is not None:
            zeros = self._read_zeros(stored, part, self.zeros).to(scales.dtype)
            values = values - self.zeros.expand(zeros, part)
        values = values * self.scales.expand(scales, part)
        return values.bfloat16() if is_fp4 else values

    def _read_scales(self, stored: WeightSource, part: Rectangle) -> torch.Tensor:
        scales = self.scales.read(stored, part)
        if scales.dtype is torch.uint8:
            return 2.0 ** (scales.int() - _BIAS).bfloat16()
        if self.global_scale is None:
            return scales
        shape = stored.infos[self.global_scale].shape  # decides the dtype of the quotient
        return scales.bfloat16() / stored.read(self.global_scale, 0, 1).view(shape)

    def _read_codes(self, stored: WeightSource, part: Rectangle) -> torch.Tensor:
        """Read the words that hold the codes, and drop what lies before and behind them."""
        info = stored.infos[self.codes]
        words = info.shape[-1]
        per_word = 8 * info.dtype.itemsize // self.bits
        first, last = part.left // per_word, -(-part.right // per_word)
        packed = read_columns(stored, self.codes, part.rows, (first, last), words)
        if info.dtype.itemsize == 1 and per_word == 1:
            return packed
        codes = unpack_bits(packed, self.bits)
        offset = part.left - first * per_word
        codes = codes[:, offset : offset + part.right - part.left]
        return codes if info.dtype is torch.uint8 else codes.short() - (1 << (self.bits - 1))

    def _read_zeros(self, stored: WeightSource, part: Rectangle, grid: Grid) -> torch.Tensor:
        if not self.has_packed_zeros:
            return grid.read(stored, part)
        groups, per_word = grid.shape[1], 32 // self.bits
        first, last = part.top // per_word, -(-part.bottom // per_word)
        words = stored.read(grid.name, first * groups, last * groups).view(-1, groups)
        codes = unpack_bits(words.T, self.bits).T[part.top - first * per_word :]
        zeros = codes[: part.bottom - part.top].short() - (1 << (self.bits - 1))
        left, right = grid.columns(part)
        return zeros[:, left:right]
