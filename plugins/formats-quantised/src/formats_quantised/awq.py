"""AWQ: `qweight`, `qzeros` and `scales` in the layout `gemm`, `quant_method: awq`.

A value is `(code - zero_point) * scale`, computed in the dtype of the scales as in AutoAWQ
(`dequantize_gemm`). The files hold the transposed matrix, and a word holds eight outputs in the
order 0, 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from reprlib import repr as shorten
from typing import TYPE_CHECKING

import torch

from formats_quantised.declaration import open_quantised
from formats_quantised.encodings import BandEncoding, read_columns, unpack_bits
from fusion_core import TensorInfo

if TYPE_CHECKING:
    from formats_quantised.declaration import Quantised
    from formats_quantised.source import DequantisedSource
    from fusion_core.weights import Location, WeightSource

_CODES, _ZEROS, _SCALES = ".qweight", ".qzeros", ".scales"
_PARTS = (_CODES, _ZEROS, _SCALES)
_BITS, _PER_WORD = 4, 8
#: Where each output of a word is.
_ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])


@dataclass(frozen=True)
class AwqMatrix(BandEncoding):
    """A matrix of shape (outputs, inputs), stored as inputs times packed outputs."""

    #: the module
    prefix: str
    #: the number of groups of consecutive inputs that share scales
    groups: int

    @property
    def unit(self) -> int:
        """The outputs in a word."""
        return _PER_WORD

    def read_band(self, stored: WeightSource, entry: int, first: int, last: int) -> torch.Tensor:
        """Decode some outputs for all inputs."""
        del entry  # one matrix
        outputs, inputs = self.info.shape
        words, width = (first // _PER_WORD, last // _PER_WORD), outputs // _PER_WORD
        packed = read_columns(stored, self.prefix + _CODES, (0, inputs), words, width)
        zeros = read_columns(stored, self.prefix + _ZEROS, (0, self.groups), words, width)
        scales = read_columns(
            stored, self.prefix + _SCALES, (0, self.groups), (first, last), outputs
        )
        size = inputs // self.groups
        codes = _unpack(packed).view(self.groups, size, -1) - _unpack(zeros).unsqueeze(1)
        values = (codes * scales.unsqueeze(1)).to(self.info.dtype)
        return values.view(inputs, -1).T.contiguous()


def open_awq(location: Location) -> DequantisedSource:
    """Open a checkpoint of AWQ."""
    model = open_quantised(location)
    layout = str(model.settings.get("version") or model.settings.get("format") or "gemm").lower()
    bits = model.settings.get("bits", _BITS)
    if layout != "gemm" or bits != _BITS:
        raise model.refuse(f"AWQ with the layout {shorten(layout)} and {shorten(bits)} bits")
    encodings = [_encoding(model, prefix) for prefix, _ in model.pairs(_CODES)]
    used = [encoding.prefix + part for encoding in encodings for part in _PARTS]
    return model.decode(encodings, used=used, label="AWQ")


def _encoding(model: Quantised, prefix: str) -> AwqMatrix:
    codes = model.matrix(prefix + _CODES, torch.int32)
    scales = model.matrix(prefix + _SCALES, torch.float16, torch.bfloat16, torch.float32)
    model.info(prefix + _ZEROS, torch.int32)
    (inputs, words), groups = codes.shape, scales.shape[0]
    if inputs % groups:
        raise model.error(scales.name, f"has {groups} groups, which do not divide {inputs} inputs")
    model.check_shape(scales.name, (groups, words * _PER_WORD))
    model.check_shape(prefix + _ZEROS, (groups, words))
    info = TensorInfo(f"{prefix}.weight", (words * _PER_WORD, inputs), model.dtype)
    return AwqMatrix(info, prefix, groups)


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """Return the codes of packed outputs in the order of the outputs."""
    codes = unpack_bits(words, _BITS).view(len(words), -1, _PER_WORD)
    return codes[:, :, _ORDER].flatten(1).to(torch.int8)
