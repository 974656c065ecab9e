"""What tasks with data of their own need: batches as pure functions, files that are told apart."""

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
    """Return the rows of one batch: a pure function, which uses no global random state.

    An epoch is a permutation of all rows, drawn by key and epoch, and holds count // size batches;
    the rows left over come in later epochs.
    """
    epoch, place = divmod(step, count // size)
    digest = hashlib.sha256(f"{key}\0{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randperm(count, generator=generator)[place * size : (place + 1) * size]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation mode, and every module of it back to what it was in."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def file_stamps(files: Iterable[str]) -> dict[str, list[int]]:
    """Identify files here by their sizes, and the times when content and entry last changed."""
    states = {file: Path(file).stat() for file in files}
    return {file: [s.st_size, s.st_mtime_ns, s.st_ctime_ns] for file, s in states.items()}
