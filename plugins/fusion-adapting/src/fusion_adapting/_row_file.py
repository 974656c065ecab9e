"""Task vectors in a temporary file, for those that take long to compute."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fusion_core.weights import DataFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_core import TensorInfo


@dataclass(frozen=True)
class RowFile:
    """Rows of all experts in one dtype. Threads may share it.

    The file has no name, so it is gone when the process ends.
    """

    file: DataFile
    #: the number of elements before each tensor, by name
    starts: Mapping[str, int]
    experts: int
    dtype: torch.dtype

    @classmethod
    def create(
        cls, directory: Path, infos: Mapping[str, TensorInfo], experts: int, dtype: torch.dtype
    ) -> RowFile:
        """Create the file in a directory, which is created too."""
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="task-vectors-", dir=directory) as folder:
            file = DataFile(Path(folder, "rows"))
        starts = accumulate((info.numel for info in infos.values()), initial=0)
        return cls(file, dict(zip(infos, starts, strict=False)), experts, dtype)

    def write(self, name: str, part: slice, rows: Tensor) -> None:
        """Write a range of a tensor's rows, of shape (experts, elements).

        Raises `DiskError` if the disk is full.
        """
        data = rows.to("cpu", self.dtype).contiguous().view(-1).view(torch.uint8).numpy().data
        self.file.write(data, self._offset(name, part))

    def read(self, name: str, part: slice) -> Tensor:
        """Read a range that was written at once."""
        shape = (self.experts, part.stop - part.start)
        size = math.prod(shape) * self.dtype.itemsize
        content, buffer = bytearray(), memoryview(bytearray(size))
        for chunk in self.file.chunks(self._offset(name, part), size, buffer):
            content += chunk
        return torch.frombuffer(content, dtype=self.dtype).view(shape)

    def _offset(self, name: str, part: slice) -> int:
        start: int = self.starts[name] + part.start
        return start * self.experts * self.dtype.itemsize
