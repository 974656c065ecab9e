"""A scheduler and workers, started by Dask's own programs, and a checkpoint to copy with them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parent))  # workers import `mortal` too
from mortal import SHARD
from programs import program, scheduler_in, worker_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dask")


@pytest.fixture(scope="module")  # idle workers take processor time until the end
def scheduler(directory: Path) -> Iterator[Path]:
    """Run a scheduler with two workers, of which one announces a GPU."""
    with (
        scheduler_in(directory) as (scheduler_file, _),
        program(directory, *worker_arguments(scheduler_file)),
        program(directory, *worker_arguments(scheduler_file, "--resources", "GPU=1")),
    ):
        yield scheduler_file


@pytest.fixture(scope="module")
def checkpoint(directory: Path) -> Path:
    """Return a file of eight tensors, each of which fills a shard."""
    tensors = {str(n): torch.full((SHARD // 4 - 40,), float(n)) for n in range(8)}
    save_file(tensors, directory / "model.safetensors")
    return directory / "model.safetensors"
