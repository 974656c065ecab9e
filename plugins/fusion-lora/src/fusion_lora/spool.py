"""Tensors on disk until all of them are known: the layout of a safetensors file needs every shape.

The file is in the staging directory of the output, so it disappears with that directory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from fusion_core import TensorInfo, WeightSource
from fusion_core.weights import DataFile, view_bytes

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
            data = view_bytes(part.contiguous())
            self._file.write(data, self._end)
            self._end += len(data)
            self.infos[name] = TensorInfo(name, shape, part.dtype)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a range of a tensor."""
        values = torch.empty(stop - start, dtype=self.infos[name].dtype)
        self._file.read(view_bytes(values), self._offsets[name] + start * values.itemsize)
        return values
