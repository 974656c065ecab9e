"""The pass that quantises a merge, and the source of its tensors.

Scales come from whole blocks, and the loss is known when every block is. So the merge is computed
once, tensor by tensor, into a scratch file, from which the output is then copied. A worker holds
one row of blocks, and the range of the merge that it reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from formats_quantised.fp8_blocks import E4M3, decode_band, encode_band
from fusion_core import TensorInfo, WeightSource
from fusion_core.weights import Cut, DataFile, check_finite, view_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

SCALE = "_scale_inv"
#: Tensors begin at multiples of this, because two machines may not write one page of a file.
_PAGE = 2**16


@dataclass(frozen=True, slots=True)
class QuantisedTensor:
    """A tensor to quantise, and where the scratch file has its codes and scales."""

    #: the tensor as a full model stores it
    info: TensorInfo
    block_size: tuple[int, int]
    offset: int

    @property
    def codes(self) -> TensorInfo:
        """The description of the codes."""
        return TensorInfo(self.info.name, self.info.shape, E4M3)

    @property
    def scales(self) -> TensorInfo:
        """The description of the scales: one per block."""
        *batch, rows, width = self.info.shape
        height, columns = self.block_size
        shape = (*batch, -(-rows // height), -(-width // columns))
        return TensorInfo(self.info.name + SCALE, shape, torch.float32)

    @property
    def scales_offset(self) -> int:
        """The position of the scales in the file, in bytes."""
        return self.offset + -(-self.codes.nbytes // _PAGE) * _PAGE

    @property
    def end(self) -> int:
        """The position of the next tensor in the file."""
        return self.scales_offset + -(-self.scales.nbytes // _PAGE) * _PAGE

    def bands(self) -> Iterator[tuple[int, int]]:
        """Yield the first and last row of each row of blocks, over all matrices of a batch."""
        *batch, rows, _ = self.info.shape
        for top in range(0, math.prod(batch) * rows, rows):
            for first in range(top, top + rows, self.block_size[0]):
                yield first, min(first + self.block_size[0], top + rows)


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one tensor."""

    name: str
    squared_norm: float
    squared_error: float


def lay_out(infos: Iterable[TensorInfo], block_size: tuple[int, int]) -> dict[str, QuantisedTensor]:
    """Assign places in a scratch file to the tensors to quantise."""
    tensors, offset = {}, 0
    for info in infos:
        tensors[info.name] = QuantisedTensor(info, block_size, offset)
        offset = tensors[info.name].end
    return tensors


@dataclass(frozen=True)
class Quantisation:
    """Quantises one tensor by name into a file, in this process or in another."""

    source: WeightSource
    tensors: Mapping[str, QuantisedTensor]
    file: DataFile
    #: whether the file is read in another process
    is_remote: bool

    def __call__(self, name: str) -> Loss:
        """Write the codes and scales of a tensor. Raises `WeightsError` for NaN and infinity."""
        tensor = self.tensors[name]
        columns = tensor.block_size[1]
        offset, scales_offset = tensor.offset, tensor.scales_offset
        norms, errors = [], []
        for band in read_bands(self.source, tensor):
            values = band.float()
            codes, scales = encode_band(values, columns)
            if not scales.isfinite().all():
                check_finite(band, name, self.source.describe())
            offset = self._write(codes, offset)
            scales_offset = self._write(scales, scales_offset)
            decoded = decode_band(codes, scales, columns).to(band.dtype).float()
            norms.append(_squared_norm(values))
            errors.append(_squared_norm(decoded.sub_(values)))
        if self.is_remote:
            self.file.sync()  # makes the data visible to other machines
        return Loss(name, math.fsum(norms), math.fsum(errors))

    def _write(self, values: torch.Tensor, offset: int) -> int:
        data = view_bytes(values.contiguous())
        self.file.write(data, offset)
        return offset + len(data)


def read_bands(source: WeightSource, tensor: QuantisedTensor) -> Iterator[torch.Tensor]:
    """Yield a tensor's rows of blocks, of shape (rows, width); read each range of a source once."""
    name, width = tensor.info.name, tensor.info.shape[-1]
    ranges = source.ranges(name)
    rest = torch.empty(0, dtype=tensor.info.dtype)
    for first, last in tensor.bands():
        count = (last - first) * width
        parts, size = ([rest] if rest.numel() else []), rest.numel()
        while size < count:
            parts.append(source.read(name, *next(ranges)))
            size += parts[-1].numel()
        values = parts[0] if len(parts) == 1 else torch.cat(parts)
        yield values[:count].view(-1, width)
        rest = values[count:]


class QuantisedSource(WeightSource):
    """The tensors of a quantised model: codes and scales from a file, others from the merge."""

    def __init__(
        self, stored: WeightSource, tensors: Mapping[str, QuantisedTensor], path: Path
    ) -> None:
        """Read from the scratch file at `path`, which the pass has written."""
        self._stored = stored
        self._file = DataFile(path, flags=0)  # opened anew: another machine may have written it
        self._offsets: dict[str, int] = {}
        self.infos: dict[str, TensorInfo] = {}
        self.cut = stored.cut
        for name, info in stored.infos.items():
            if (tensor := tensors.get(name)) is None:
                self.infos[name] = info
                continue
            for part, offset in (
                (tensor.codes, tensor.offset),
                (tensor.scales, tensor.scales_offset),
            ):
                self.infos[part.name] = part
                self._offsets[part.name] = offset

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor."""
        if name not in self._offsets:
            return self._stored.read(name, start, stop)
        values = torch.empty(stop - start, dtype=self.infos[name].dtype)
        self._file.read(view_bytes(values), self._offsets[name] + start * values.itemsize)
        return values

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield ranges of any size for codes and scales, and those of the merge for others."""
        if name in self._offsets:
            return Cut.ELEMENT.ranges(self.infos[name])
        return self._stored.ranges(name)

    def prepare(self, executor: Executor, name: str | None = None) -> None:
        """Prepare the merge, for tensors that are not quantised."""
        if name not in self._offsets:
            self._stored.prepare(executor, name)

    @property
    def sources(self) -> tuple[WeightSource, ...]:
        """The merge."""
        return (self._stored,)


def _squared_norm(values: torch.Tensor) -> float:
    norm: float = torch.linalg.vector_norm(values, dtype=torch.float64).item()
    return norm * norm
