"""A killed search after transforms resumes from its last saved step to the same bytes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Outcome

pytestmark = pytest.mark.plugins

FUSE = Path(sys.executable).with_name("fuse")
RUN = ["run", "--algo", "trim,elect,adamerging", "--pool", "mini8", "--no-eval", "-q"]
OPTIONS = ["steps=16", "save_every=2", "batch_size=4"]
COMMAND = [
    *RUN,
    *(part for option in OPTIONS for part in ("--set", f"algorithm.adamerging.{option}")),
]


@pytest.mark.thorough
def test_killed_search_resumes_to_the_same_bytes(
    fuse: Callable[..., Outcome], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert fuse(*COMMAND, "-o", whole).code == 0
    process = subprocess.Popen([FUSE, *COMMAND, "-o", killed])
    saved = _wait_for_state(tmp_path, process)
    process.kill()
    assert process.wait() == -9
    assert not killed.exists()
    assert saved.exists(), "what it resumes from"
    assert fuse(*COMMAND, "-o", killed, "--resume").code == 0
    for name in ("coefficients.json", "model.safetensors", "metrics.jsonl", "coefficients.svg"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def _wait_for_state(directory: Path, process: subprocess.Popen[bytes]) -> Path:
    """Wait until the run has saved its state. It must not have ended by then."""
    for _ in range(3000):
        assert process.poll() is None, "it ended before it could be killed"
        for path in directory.glob(".killed.fuse-*/state/search-b.json"):
            return path
        time.sleep(0.05)
    raise AssertionError("no state was saved")
