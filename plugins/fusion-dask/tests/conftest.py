"""A scheduler with workers, as Dask's own programs start them, and a model to be copied on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parent))  # workers import `mortal`, too
from mortal import SHARD
from programs import program, scheduler_in, worker_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dask")


@pytest.fixture(scope="session")
def scheduler(place: Path) -> Iterator[Path]:
    """Run a scheduler with two workers, of which one has a GPU by its own account."""
    with (
        scheduler_in(place) as (where, _),
        program(place, *worker_of(where)),
        program(place, *worker_of(where, "--resources", "GPU=1")),
    ):
        yield where


@pytest.fixture(scope="session")
def checkpoint(place: Path) -> Path:
    """Return a file of eight tensors, each as large as a shard may be."""
    tensors = {str(n): torch.full((SHARD // 4 - 40,), float(n)) for n in range(8)}
    save_file(tensors, place / "model.safetensors")
    return place / "model.safetensors"
