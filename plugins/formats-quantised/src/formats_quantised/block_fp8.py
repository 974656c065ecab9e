"""fp8 with one scale per block or per tensor, as of DeepSeek-V3 and Qwen3: `quant_method: fp8`.

A value is `weight * weight_scale_inv` of its block, computed in fp32 and rounded once, as in
transformers (`Fp8Dequantize`). Scales of one byte are exponents of two with the bias 127.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import TYPE_CHECKING

import torch

from formats_quantised.declaration import open_quantised
from formats_quantised.encodings import RowEncoding, read_columns
from formats_quantised.fp8_blocks import decode_numbers
from formats_quantised.grids import Grid, is_side
from fusion_core import TensorInfo

if TYPE_CHECKING:
    from formats_quantised.declaration import Quantised
    from formats_quantised.encodings import Rectangle
    from formats_quantised.source import DequantisedSource
    from fusion_core.weights import Location, WeightSource

_SCALE = "_scale_inv"
#: The scales of AutoFP8, which no installed library reads.
_UNSUPPORTED = ".weight_scale"
_CODES = (torch.float8_e4m3fn, torch.float8_e5m2)
#: Scales of the inputs of a layer, which only inference in fp8 needs.
_ACTIVATIONS = (".activation_scale", "_activation_scale", ".input_scale")
_BIAS = 127


@dataclass(frozen=True)
class BlockFp8(RowEncoding):
    """A matrix, or a batch of matrices, of fp8 numbers with scales."""

    grid: Grid

    def read_rectangle(self, stored: WeightSource, part: Rectangle) -> torch.Tensor:
        """Multiply values and scales in fp32."""
        values = read_columns(stored, self.info.name, part.rows, part.columns, self.width)
        scales = self.grid.read(stored, part)
        if scales.dtype is torch.uint8:
            scales = (scales.float() - _BIAS).exp2()
        return decode_numbers(values).mul_(self.grid.expand(scales.float(), part))


def open_fp8(location: Location) -> DequantisedSource:
    """Open a checkpoint of block-fp8."""
    model = open_quantised(location)
    block = model.setting("weight_block_size", list, [128, 128])
    if block is not None and (len(block) != 2 or not all(map(is_side, block))):  # noqa: PLR2004
        raise model.refuse(f"weight_block_size {shorten(block)}")
    for prefix, _ in model.pairs(_UNSUPPORTED):
        raise model.refuse(f"{prefix}{_UNSUPPORTED} (the fp8 of AutoFP8)")
    for dtype in _CODES:
        model.check_scales(dtype, "", _SCALE)
    encodings = [_encoding(model, name, block) for name, _ in model.pairs(_SCALE)]
    used = {encoding.info.name for encoding in encodings}
    used |= {encoding.grid.name for encoding in encodings}
    used |= {name for name in model.stored.infos if name.endswith(_ACTIVATIONS)}
    size = "tensor" if block is None else f"block of {block[0]}x{block[1]}"
    return model.decode(encodings, used=used, label=f"fp8 with one scale per {size}")


def _encoding(model: Quantised, name: str, block: list[int] | None) -> BlockFp8:
    shape = model.info(name, *_CODES).shape
    scale = model.info(name + _SCALE, torch.float32, torch.bfloat16, torch.float16, torch.uint8)
    if len(shape) < 2 or 0 in shape:  # noqa: PLR2004
        raise model.error(name, f"has shape {list(shape)}, expected a matrix")
    *batch, rows, width = shape
    if block is not None:
        blocks = (-(-rows // block[0]), -(-width // block[1]))
        model.check_shape(scale.name, (*batch, *blocks))
        grid = Grid(scale.name, blocks, (block[0], block[1]), rows)
    elif scale.numel == 1:
        height = math.prod((*batch, rows))
        grid = Grid(scale.name, (1, 1), (height, width), height)
    else:
        model.check_shape(scale.name, (*batch, 1, 1))
        grid = Grid(scale.name, (1, 1), (rows, width), rows)
    return BlockFp8(TensorInfo(name, shape, model.dtype), grid)
