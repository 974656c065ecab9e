"""Helpers for tasks with data of their own: reproducible batches, and identities of files."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusion_core.errors import RecipeError
from fusion_core.weights.reading.containment import report_unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn


def shuffled_rows(step: int, size: int, count: int, *, key: str) -> Tensor:
    """Return the row indices of one batch as a pure function of the arguments, shape (size,).

    Each epoch is a permutation of all `count` rows, drawn from `key` and the epoch's number, and
    holds count // size batches. Rows left over at its end appear in later epochs. Raises
    `RecipeError` for a size that no batch can have.
    """
    if not 0 < size <= count:
        raise RecipeError(
            f"invalid batch size {size}: there are {count} examples",
            hint="Implement `count` in the task: methods then take smaller batches.",
        )
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
    return {str(path): _stamp(path) for path in (Path(file).resolve() for file in files)}


def hash_files(files: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the size (`bytes`) and the SHA-256 (`sha256`) of local files, for `TaskPool.inputs`.

    A file is named relative to the folder that all of them have in common, so the result does not
    depend on where they are. A file is read again only after it has changed. Raises
    `CheckpointError` for a file that cannot be read.
    """
    paths = sorted({Path(file).resolve() for file in files})
    folder = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return {path.relative_to(folder).as_posix(): _describe(path) for path in paths}


def _describe(path: Path) -> dict[str, Any]:
    with report_unreadable(path):
        stamp = _stamp(path)
        return {"bytes": stamp[0], "sha256": _hash(path, *stamp)}


@lru_cache(maxsize=4096)
def _hash(path: Path, *_stamp: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stamp(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
