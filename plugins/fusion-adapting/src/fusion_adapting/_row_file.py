"""Task vectors in a temporary file, for those that take long to compute."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING
from uuid import uuid4

import torch

from fusion_core.weights import DataFile, view_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

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
        """Create the file in a directory; raise `DiskError` if that cannot be written to."""
        path = directory / f"task-vectors-{uuid4().hex}"
        file = DataFile(path)
        path.unlink()
        starts = accumulate((info.numel for info in infos.values()), initial=0)
        return cls(file, dict(zip(infos, starts, strict=False)), experts, dtype)

    def write(self, name: str, part: slice, rows: Tensor) -> None:
        """Write a range of a tensor's rows, of shape (experts, elements).

        Raises `DiskError` if the disk is full.
        """
        stored = rows.to("cpu", self.dtype).contiguous()
        self.file.write(view_bytes(stored), self._offset(name, part))

    def read(self, name: str, part: slice) -> Tensor:
        """Read a range that was written at once."""
        rows = torch.empty((self.experts, part.stop - part.start), dtype=self.dtype)
        self.file.read(view_bytes(rows), self._offset(name, part))
        return rows

    def _offset(self, name: str, part: slice) -> int:
        start: int = self.starts[name] + part.start
        return start * self.experts * self.dtype.itemsize
