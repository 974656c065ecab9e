"""Helpers for tasks with data of their own: reproducible batches and file identities."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn


def shuffled_rows(step: int, size: int, count: int, *, key: str) -> Tensor:
    """Return the row indices of one batch as a pure function of the arguments, shape (size,).

    Each epoch is a permutation of all `count` rows, drawn from `key` and the epoch's number, and
    holds count // size batches. Rows left over at its end appear in later epochs.
    """
    epoch, batch = divmod(step, count // size)
    digest = hashlib.sha256(f"{key}\0{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randperm(count, generator=generator)[batch * size : (batch + 1) * size]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation mode; restore the mode of every module afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def file_stamps(files: Iterable[str]) -> dict[str, list[int]]:
    """Identify local files by path, size, modification time and status change time (ns)."""
    states = {str(path): path.stat() for path in (Path(file).resolve() for file in files)}
    return {file: [s.st_size, s.st_mtime_ns, s.st_ctime_ns] for file, s in states.items()}
