"""A hub pool with weights of real size. It takes minutes and gigabytes, so it is off by default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "clip_hub.py"


@pytest.mark.full_size
def test_every_method_runs_at_full_size() -> None:
    command = [sys.executable, str(BENCHMARK), "--experts", "2", "--images", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sys.stdout.write(done.stdout)  # `pytest -s` shows times and memory
    measured = [line.split("|")[1].strip() for line in done.stdout.splitlines() if " GB |" in line]
    assert measured == ["task-arithmetic", "ties", "adamerging"]
