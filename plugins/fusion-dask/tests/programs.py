"""Dask's own programs on this machine: a scheduler and workers, each in its own session."""

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
def program(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of Dask in another working directory than the tests'."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, "-m", "dask", *arguments]
    with (directory / f"{arguments[0]}.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def scheduler_in(directory: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Start a scheduler; yields its scheduler file and its process."""
    scheduler_file = directory / "scheduler.json"
    flags = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
    with program(
        directory, "scheduler", *flags, "--scheduler-file", str(scheduler_file)
    ) as process:
        until = time.monotonic() + 600
        while not scheduler_file.exists() and time.monotonic() < until:
            time.sleep(0.05)
        yield scheduler_file, process


def worker_arguments(scheduler_file: Path, *flags: str) -> Sequence[str]:
    """Return the arguments that start a worker."""
    options = ("--no-nanny", "--nthreads", "1", "--no-dashboard")
    return ("worker", "--scheduler-file", str(scheduler_file), *options, *flags)
