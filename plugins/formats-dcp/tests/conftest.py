"""Distributed checkpoints, written by torch itself."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed.checkpoint as dcp

if TYPE_CHECKING:
    from collections.abc import Callable

RANKS = Path(__file__).with_name("save_ranks.py")


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of checkpoints that four ranks saved, and the tensors in one file each."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, RANKS, folder], check=True, timeout=300)
    return folder


@pytest.fixture
def save() -> Callable[[Path, Any], Path]:
    """Return a function that saves a state dict from one process."""

    def save(directory: Path, state: Any) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(state, checkpoint_id=directory)
        return directory

    return save
