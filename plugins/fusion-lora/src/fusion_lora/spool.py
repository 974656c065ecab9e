"""Tensors on disk until all of them are known: the layout of a safetensors file needs every shape.

The file is in the staging directory of the output, so it disappears with that directory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from fusion_core import TensorInfo, WeightSource
from fusion_core.weights import DataFile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Spool(WeightSource):
    """Tensors in the order in which `add` was called, in one file without a header."""

    def __init__(self, path: Path) -> None:
        self.infos: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        self._file = DataFile(path, flags=os.O_CREAT | os.O_TRUNC)
        self._end = 0

    def add(self, name: str, values: Iterable[torch.Tensor], shape: tuple[int, ...]) -> None:
        """Append a tensor, given in parts of one dtype that follow each other."""
        self._offsets[name] = self._end
        for part in values:
            data = part.contiguous().reshape(-1).view(torch.uint8).numpy().data
            self._file.write(data, self._end)
            self._end += len(data)
            self.infos[name] = TensorInfo(name, shape, part.dtype)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor."""
        dtype = self.infos[name].dtype
        offset, size = (count * dtype.itemsize for count in (start, stop - start))
        content, buffer = bytearray(), memoryview(bytearray(size))
        for chunk in self._file.chunks(self._offsets[name] + offset, size, buffer):
            content += chunk
        return torch.frombuffer(content, dtype=dtype) if content else torch.zeros(0, dtype=dtype)
