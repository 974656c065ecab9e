"""Tensors on disk until all of them are known: the layout of a safetensors file needs every shape.

The file is in the staging directory of the output, so it disappears with that directory.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

import torch

from fusion_core import TensorInfo, WeightSource

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Spool(WeightSource):
    """Tensors in the order in which `add` was called, in one file without a header."""

    def __init__(self, path: Path) -> None:
        self.infos: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._end = 0
        weakref.finalize(self, os.close, self._file)

    def add(self, name: str, values: Iterable[torch.Tensor], shape: tuple[int, ...]) -> None:
        """Append a tensor, given in parts of one dtype that follow each other."""
        self._offsets[name] = self._end
        for part in values:
            data = part.contiguous().reshape(-1).view(torch.uint8).numpy().data
            while data:
                written = os.pwrite(self._file, data, self._end)
                self._end += written
                data = data[written:]
            self.infos[name] = TensorInfo(name, shape, part.dtype)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor."""
        dtype = self.infos[name].dtype
        buffer = bytearray((stop - start) * dtype.itemsize)
        offset, view = self._offsets[name] + start * dtype.itemsize, memoryview(buffer)
        while view:
            count = os.preadv(self._file, [view], offset)
            offset, view = offset + count, view[count:]
        return torch.frombuffer(buffer, dtype=dtype) if buffer else torch.zeros(0, dtype=dtype)
