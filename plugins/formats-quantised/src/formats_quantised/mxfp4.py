"""mxfp4 as of gpt-oss: packed experts in `*_blocks` and `*_scales`, `quant_method: mxfp4`.

A block is 16 bytes with 32 numbers of four bits, the low half of each byte first, and an exponent
of two with the bias 127. The files hold the transposed matrix of each expert. Values are computed
in the model's dtype, as in transformers (`convert_moe_packed_tensors`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from formats_quantised.declaration import open_quantised
from formats_quantised.encodings import BandEncoding, read_columns, unpack_bits
from formats_quantised.fp4 import FP4_VALUES
from fusion_core import TensorInfo

if TYPE_CHECKING:
    from formats_quantised.declaration import Quantised
    from formats_quantised.source import DequantisedSource
    from fusion_core.weights import Location, WeightSource

_BLOCKS, _SCALES = "_blocks", "_scales"
_BYTES, _NUMBERS = 16, 32
_BIAS = 127


@dataclass(frozen=True)
class Mxfp4Experts(BandEncoding):
    """Packed experts of shape (experts, inputs, outputs), stored as outputs times inputs."""

    @property
    def unit(self) -> int:
        """The inputs in a block."""
        return _NUMBERS

    def read_band(self, stored: WeightSource, entry: int, first: int, last: int) -> torch.Tensor:
        """Decode some inputs of one expert, for all outputs."""
        _, inputs, outputs = self.info.shape
        rows, width = (entry * outputs, (entry + 1) * outputs), inputs // _NUMBERS
        left, right = first // _NUMBERS, last // _NUMBERS
        octets = read_columns(
            stored,
            self.info.name + _BLOCKS,
            rows,
            (left * _BYTES, right * _BYTES),
            width * _BYTES,
        )
        scales = read_columns(stored, self.info.name + _SCALES, rows, (left, right), width)
        exponents = scales.int() - _BIAS
        dtype = self.info.dtype
        # Some versions of torch compute powers of two in fp16, where small ones are zero.
        wide = torch.float32 if dtype is torch.float16 else dtype
        values = FP4_VALUES.to(wide)[unpack_bits(octets, 4).int()].view(outputs, -1, _NUMBERS)
        torch.ldexp(values, exponents.unsqueeze(-1), out=values)
        return values.to(dtype).view(outputs, last - first).T.contiguous()


def open_mxfp4(location: Location) -> DequantisedSource:
    """Open a checkpoint of mxfp4."""
    model = open_quantised(location)
    encodings = [_encoding(model, name) for name, _ in model.pairs(_BLOCKS)]
    used = [encoding.info.name + end for encoding in encodings for end in (_BLOCKS, _SCALES)]
    return model.decode(encodings, used=used, label="mxfp4")


def _encoding(model: Quantised, name: str) -> Mxfp4Experts:
    shape = model.info(name + _BLOCKS, torch.uint8).shape
    model.info(name + _SCALES, torch.uint8)
    if len(shape) != 4 or shape[-1] != _BYTES or 0 in shape:  # noqa: PLR2004
        problem = f"has shape {list(shape)}, expected [experts, outputs, blocks, {_BYTES}]"
        raise model.error(name + _BLOCKS, problem)
    experts, outputs, blocks, _ = shape
    model.check_shape(name + _SCALES, (experts, outputs, blocks))
    return Mxfp4Experts(TensorInfo(name, (experts, blocks * _NUMBERS, outputs), model.dtype))
