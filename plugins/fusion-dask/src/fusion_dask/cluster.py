"""Where the scheduler is: one that runs somewhere, or one of our own with local workers."""

from __future__ import annotations

import json
import logging
import os
import sys
from asyncio import create_subprocess_exec
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from distributed import Client, Scheduler, SpecCluster
from distributed.deploy.subprocess import SubprocessWorker

from fusion_core.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_dask.config import DaskConfig

_HERE = "127.0.0.1"
_SECONDS_TO_CONNECT = 5.0


@contextmanager
def connected(config: DaskConfig) -> Iterator[Client]:
    """Connect to the scheduler that a configuration means; raises `WorkerError` if none answers."""
    if config.is_local:
        with _local_scheduler(config.workers or _cores()) as address, _client(address) as client:
            yield client
    else:
        with _client(config.address or _address_in(Path(config.scheduler_file or ""))) as client:
            yield client


@contextmanager
def _local_scheduler(workers: int) -> Iterator[str]:
    """Start a scheduler with processes on this machine; yields its address.

    Workers are programs of their own, not children that import the caller's `__main__`. They have a
    thread each and no limit of memory, and end with the scheduler, however that ends.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)  # some speak when all is over
    with TemporaryDirectory(prefix="fusion-dask-") as place:
        quiet = logging.CRITICAL
        served = {"host": _HERE, "port": 0, "dashboard": False, "dashboard_address": ":0"}
        served["local_directory"] = place
        options = {"nthreads": 1, "memory_limit": 0}
        worker = {
            "worker_class": "distributed.Worker",
            "worker_kwargs": {**served, **options, "silence_logs": quiet},
        }
        with SpecCluster(
            workers={n: {"cls": _LocalWorker, "options": worker} for n in range(workers)},
            scheduler={"cls": Scheduler, "options": served},
            silence_logs=quiet,
        ) as cluster:
            yield cluster.scheduler_address


class _LocalWorker(SubprocessWorker):
    """A worker that Ctrl-C does not reach: what it has begun, it ends."""

    async def _start(self) -> None:
        spec = json.dumps({"cls": self.worker_class, "opts": self.worker_kwargs})
        command = [sys.executable, "-m", "dask", "spec", self.scheduler, "--spec", spec]
        self.process = await create_subprocess_exec(*command, start_new_session=True)


@contextmanager
def _client(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"no Dask scheduler answers at {address}: {error}",
            hint="Start one with `dask scheduler`, and workers with `dask worker ADDRESS`.",
        ) from error
    with client:
        yield client


def _address_in(path: Path) -> str:
    """Read the address from what a scheduler wrote; raises `WorkerError` for another file."""
    try:
        return str(json.loads(path.read_bytes())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkerError(
            f"{path} does not say where a Dask scheduler is: {error!r}",
            hint=f"Start one with `dask scheduler --scheduler-file {path}`.",
        ) from error


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
