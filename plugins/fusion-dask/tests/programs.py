"""Dask's own programs on this machine: a scheduler, and workers of their own sessions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TESTS = Path(__file__).parent


@contextmanager
def program(place: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of Dask in a folder where none of ours would look for files."""
    own = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, "-m", "dask", *arguments]
    with (place / f"{arguments[0]}.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=place, env=own, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def scheduler_in(place: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Start a scheduler; yields the file that says where it is."""
    where = place / "scheduler.json"
    flags = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
    with program(place, "scheduler", *flags, "--scheduler-file", str(where)) as process:
        until = time.monotonic() + 600
        while not where.exists() and time.monotonic() < until:
            time.sleep(0.05)
        yield where, process


def worker_of(where: Path, *flags: str) -> Sequence[str]:
    """Return the arguments that start a worker."""
    own = ("--no-nanny", "--nthreads", "1", "--no-dashboard")
    return ("worker", "--scheduler-file", str(where), *own, *flags)
