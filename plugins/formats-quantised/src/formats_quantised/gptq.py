"""GPTQ: `qweight`, `qzeros`, `scales` and `g_idx`, `quant_method: gptq`.

A value is `scales[g] * (code - zero_point[g])` with the group `g` of its column, computed in the
dtype of the scales as in GPTQModel. The first version of the format stores each zero point less
one. The files hold the transposed matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from reprlib import repr as shorten
from typing import TYPE_CHECKING

import torch

from formats_quantised.declaration import open_quantised
from formats_quantised.encodings import BandEncoding, read_columns, unpack_bits
from fusion_core import TensorInfo
from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from formats_quantised.declaration import Quantised
    from formats_quantised.source import DequantisedSource
    from fusion_core.weights import Location, WeightSource

_CODES, _ZEROS, _SCALES, _GROUPS = ".qweight", ".qzeros", ".scales", ".g_idx"
_PARTS = (_CODES, _ZEROS, _SCALES, _GROUPS)
#: The number by which the first version of the format lowers a packed word of zero points, by bits.
_LESS = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
_WORD = 32


@dataclass(frozen=True)
class GptqMatrix(BandEncoding):
    """A matrix of shape (outputs, inputs), stored as packed inputs times outputs."""

    #: the module
    prefix: str
    bits: int
    #: the number of groups of inputs that share scales
    groups: int
    is_first_version: bool

    @property
    def unit(self) -> int:
        """The outputs whose zero points share a word."""
        return _WORD // self.bits

    def read_band(self, stored: WeightSource, entry: int, first: int, last: int) -> torch.Tensor:
        """Decode some outputs for all inputs."""
        del entry  # one matrix
        outputs, inputs = self.info.shape
        groups = stored.read(self.prefix + _GROUPS, 0, inputs).long()
        if groups.min() < 0 or groups.max() >= self.groups:
            raise CheckpointError(
                f"{stored.describe()}: tensor {self.prefix + _GROUPS!r} names groups from "
                f"{groups.min()} to {groups.max()}, expected 0 to {self.groups - 1}",
                hint="The model is damaged; download or save it again.",
            )
        band, words = (first, last), (first // self.unit, last // self.unit)
        codes = read_columns(stored, self.prefix + _CODES, (0, inputs // self.unit), band, outputs)
        all_groups = (0, self.groups)
        zeros = read_columns(stored, self.prefix + _ZEROS, all_groups, words, outputs // self.unit)
        if self.is_first_version:
            zeros = zeros + _LESS[self.bits]
        zeros = unpack_bits(zeros, self.bits).T.short()
        scales = read_columns(stored, self.prefix + _SCALES, all_groups, band, outputs).T
        integers = unpack_bits(codes.T, self.bits).short() - zeros[:, groups]
        return (scales[:, groups] * integers).to(self.info.dtype)


def open_gptq(location: Location) -> DequantisedSource:
    """Open a checkpoint of GPTQ."""
    model = open_quantised(location)
    # `checkpoint_format` is the older name. GPTQModel writes both.
    named = [model.setting(key, str, None) for key in ("format", "checkpoint_format")]
    forms = {form for form in named if form} or {"gptq"}
    if len(forms) > 1:
        raise model.refuse(f"the format {shorten(named[0])} and checkpoint_format {named[1]!r}")
    (form,) = forms
    if form not in ("gptq", "gptq_v2") or model.settings.get("is_marlin_format"):
        raise model.refuse(f"the format {shorten(form)}")
    encodings = [
        _encoding(model, prefix, is_first_version=form == "gptq")
        for prefix, _ in model.pairs(_CODES)
    ]
    used = [encoding.prefix + part for encoding in encodings for part in _PARTS]
    return model.decode(encodings, used=used, label=f"GPTQ ({form})")


def _encoding(model: Quantised, prefix: str, *, is_first_version: bool) -> GptqMatrix:
    codes = model.matrix(prefix + _CODES, torch.int32)
    scales = model.matrix(prefix + _SCALES, torch.float16, torch.bfloat16, torch.float32)
    model.info(prefix + _ZEROS, torch.int32)
    order = model.info(prefix + _GROUPS, torch.int32, torch.int64)
    inputs, (words, outputs), groups = order.numel, codes.shape, scales.shape[0]
    bits = words * _WORD // max(inputs, 1)
    if bits not in _LESS or bits * inputs != words * _WORD:
        raise model.refuse(f"{codes.name} of shape {list(codes.shape)} for {inputs} inputs")
    if outputs * bits % _WORD:
        raise model.refuse(f"{codes.name} with {outputs} outputs of {bits} bits")
    model.check_shape(order.name, (inputs,))
    model.check_shape(scales.name, (groups, outputs))
    model.check_shape(prefix + _ZEROS, (groups, outputs * bits // _WORD))
    info = TensorInfo(f"{prefix}.weight", (outputs, inputs), model.dtype)
    return GptqMatrix(info, prefix, bits, groups, is_first_version)
