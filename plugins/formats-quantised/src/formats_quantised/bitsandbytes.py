"""Checkpoints of bitsandbytes: nf4 and fp4 with `quant_state`, and int8 with row scales.

A 4-bit value is `code * absmax` of its block of the flattened tensor, computed in fp32; with double
quantisation the scales are codes of 8 bits themselves. The shape is stored as JSON in a tensor, and
the layout of int8 as a number, so opening a model on the hub downloads it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from formats_quantised.declaration import DTYPES, open_quantised
from formats_quantised.encodings import RowEncoding, read_columns
from fusion_core import TensorInfo
from fusion_core.weights import parse_json

if TYPE_CHECKING:
    from formats_quantised.declaration import Quantised
    from formats_quantised.encodings import Encoding, Rectangle
    from formats_quantised.source import DequantisedSource
    from fusion_core.weights import Location, WeightSource

_KINDS = ("nf4", "fp4")
_STATE = ".quant_state.bitsandbytes__"
_ABSMAX, _MAP = ".absmax", ".quant_map"
_NESTED, _NESTED_MAP = ".nested_absmax", ".nested_quant_map"
_ROWS, _LAYOUT = ".SCB", ".weight_format"
#: The layouts of int8 by number. bitsandbytes 0.50 refuses all but the first.
_LAYOUTS = ("row", "col32", "col_turing", "col_ampere")
_LARGEST_STATE = 4096
#: Offsets of scales are within the range of fp32.
_LARGEST_OFFSET = 1e38
#: The dtypes of `bnb_4bit_quant_storage`. FSDP shards only tensors of the model's dtype.
_STORAGE = (torch.uint8, torch.bfloat16, torch.float16, torch.float32)
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_CODES, _NESTED_CODES = 16, 256
#: 1 / 127 as bitsandbytes rounds it.
_INT8_STEP = 7.874015718698502e-3


@dataclass(frozen=True)
class FourBits(RowEncoding):
    """A tensor of codes of four bits, the high half of each byte first, in blocks."""

    block: int
    #: the dtype that bitsandbytes rounds to
    stored_dtype: torch.dtype
    #: block size and offset of the scales' own scales
    nested: tuple[int, float] | None

    @property
    def width(self) -> int:
        """The length of the flattened tensor: blocks run across its rows."""
        return self.info.numel

    def read_rectangle(self, stored: WeightSource, part: Rectangle) -> torch.Tensor:
        """Multiply the numbers that the codes stand for by the scales of their blocks."""
        first, last = part.left // 2, -(-part.right // 2)
        octets = self._octets(stored, first, last)
        halves = torch.stack((octets >> 4, octets & 15), dim=-1).flatten()
        codes = halves[part.left - 2 * first :][: part.right - part.left]
        values = stored.read(self.info.name + _MAP, 0, _CODES)[codes.int()]
        block = part.left // self.block
        scales = self._scales(stored, block, -(-part.right // self.block))
        repeated = scales.repeat_interleave(self.block)[part.left - block * self.block :]
        return values.mul_(repeated[: len(values)]).to(self.stored_dtype)

    def _octets(self, stored: WeightSource, first: int, last: int) -> torch.Tensor:
        """Return some bytes of codes, which may be stored as a tensor of a wider dtype."""
        size = stored.infos[self.info.name].dtype.itemsize
        start = first // size
        words = stored.read(self.info.name, start, -(-last // size))
        return words.view(torch.uint8)[first - start * size : last - start * size]

    def _scales(self, stored: WeightSource, first: int, last: int) -> torch.Tensor:
        """Return the scales of some blocks in fp32."""
        scales = stored.read(self.info.name + _ABSMAX, first, last)
        if self.nested is None:
            return scales
        block, offset = self.nested
        start = first // block
        nested = stored.read(self.info.name + _NESTED, start, -(-last // block))
        repeated = nested.repeat_interleave(block)[first - start * block :][: len(scales)]
        codes = stored.read(self.info.name + _NESTED_MAP, 0, _NESTED_CODES)
        return codes[scales.int()] * repeated + offset


@dataclass(frozen=True)
class RowInt8(RowEncoding):
    """A matrix of int8 with one scale per row."""

    scales: str

    def read_rectangle(self, stored: WeightSource, part: Rectangle) -> torch.Tensor:
        """Multiply codes and the scales of their rows in fp32."""
        codes = read_columns(stored, self.info.name, part.rows, part.columns, self.width)
        return codes * stored.read(self.scales, part.top, part.bottom).view(-1, 1) * _INT8_STEP


def open_bitsandbytes(location: Location) -> DequantisedSource:
    """Open a checkpoint of bitsandbytes."""
    model = open_quantised(location)
    model.check_scales(torch.uint8, ".weight", *(f".weight{_STATE}{kind}" for kind in _KINDS))
    model.check_scales(torch.int8, ".weight", _ROWS)
    encodings: list[Encoding] = [
        _four_bits(model, prefix, kind)
        for kind in _KINDS
        for prefix, _ in model.pairs(_STATE + kind)
    ]
    used = {
        encoding.info.name + suffix
        for encoding in encodings
        for suffix in ("", _ABSMAX, _MAP, _NESTED, _NESTED_MAP, *(_STATE + kind for kind in _KINDS))
    }
    for prefix, info in model.pairs(_ROWS):
        encodings.append(_int8(model, prefix, info))
        used |= {f"{prefix}.weight", info.name, prefix + _LAYOUT}
    return model.decode(encodings, used=used, label="bitsandbytes")


def _four_bits(model: Quantised, name: str, kind: str) -> FourBits:
    state = _read_state(model, name + _STATE + kind)
    shape, block, dtype = state["shape"], state["blocksize"], state["dtype"]
    count = math.prod(shape)
    info = TensorInfo(name, shape, model.dtype)
    codes = model.info(name, *_STORAGE)
    if codes.nbytes != -(-count // (2 * codes.dtype.itemsize)) * codes.dtype.itemsize:
        raise model.error(name, f"has {codes.nbytes} bytes for shape {list(shape)}")
    blocks = -(-count // block)
    model.info(name + _MAP, torch.float32)
    model.check_shape(name + _MAP, (_CODES,))
    model.check_shape(name + _ABSMAX, (blocks,))
    if name + _NESTED not in model.stored.infos:
        model.info(name + _ABSMAX, torch.float32)
        return FourBits(info, block, dtype, None)
    nested, offset = state["nested_blocksize"], state["nested_offset"]
    model.info(name + _ABSMAX, torch.uint8)
    model.info(name + _NESTED, torch.float32)
    model.check_shape(name + _NESTED, (-(-blocks // nested),))
    model.info(name + _NESTED_MAP, torch.float32)
    model.check_shape(name + _NESTED_MAP, (_NESTED_CODES,))
    return FourBits(info, block, dtype, (nested, offset))


def _read_state(model: Quantised, name: str) -> dict[str, Any]:
    """Read the JSON that a tensor holds; raise `CheckpointError` for invalid values."""
    info = model.info(name, torch.uint8)
    if info.numel > _LARGEST_STATE:
        raise model.error(name, f"has {info.numel} bytes, expected at most {_LARGEST_STATE}")
    text = bytes(model.stored.read(name, 0, info.numel).tolist())
    state = parse_json(text, path=f"{model.stored.describe()}: {name}")
    shape, block = state.get("shape"), state.get("blocksize")
    nested, offset = state.get("nested_blocksize", _BLOCKS[0]), state.get("nested_offset", 0.0)
    dtype = DTYPES.get(str(state.get("dtype")))
    is_shape = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    is_known = type(block) is int and block in _BLOCKS and dtype is not None
    is_nested = type(nested) is int and nested in _BLOCKS and type(offset) in (int, float)
    if not (is_shape and is_known and is_nested and abs(offset) < _LARGEST_OFFSET):
        problem = "has an invalid shape, blocksize, dtype, nested_blocksize or nested_offset"
        raise model.error(name, problem)
    state |= {"shape": tuple(shape or ()), "dtype": dtype, "nested_blocksize": nested}
    return {**state, "nested_offset": float(offset)}


def _int8(model: Quantised, prefix: str, scales: TensorInfo) -> RowInt8:
    name = f"{prefix}.weight"
    info = model.matrix(name, torch.int8)
    model.info(scales.name, torch.float32)
    model.check_shape(scales.name, (info.shape[0],))
    _check_layout(model, prefix + _LAYOUT)
    return RowInt8(TensorInfo(name, info.shape, model.dtype), scales.name)


def _check_layout(model: Quantised, name: str) -> None:
    """Raise `CheckpointError` unless rows are stored one after the other, the default."""
    if name not in model.stored.infos:
        return
    model.info(name, torch.uint8)
    model.check_shape(name, (), (1,))
    number = int(model.stored.read(name, 0, 1))
    if number != 0:
        layout = _LAYOUTS[number] if number < len(_LAYOUTS) else "unknown"
        raise model.refuse(f"{name} {number} (the layout {layout})")
