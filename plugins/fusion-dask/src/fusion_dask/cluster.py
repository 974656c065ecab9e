"""Where the scheduler is: one that runs somewhere, or one of our own with local workers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from asyncio import create_subprocess_exec
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from distributed import Client, Scheduler, Security, SpecCluster
from distributed.core import rpc
from distributed.deploy.subprocess import SubprocessWorker

from fusion_core.errors import WorkerError
from fusion_dask.config import check_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_dask.config import DaskConfig

_HERE = "127.0.0.1"
_LARGEST_FILE = 2**20
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
    _check_scheduler(address)
    try:
        client = Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise _no_answer(address, error) from error
    with client:
        yield client


def _check_scheduler(address: str) -> None:
    """Raise `WorkerError` unless a scheduler answers.

    Asked before there is a client, which waits for ever for a server that never answers, and whose
    remains complain on stderr. In a thread, for a notebook's own event loop runs in this one.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fusion-dask-probe") as thread:
        try:
            kind = thread.submit(asyncio.run, _kind_of(address)).result()
        except TimeoutError as error:
            reason = ValueError("a server accepts the connection and says nothing")
            raise _no_answer(address, error if str(error) else reason) from error
        except Exception as error:  # whatever is made of the bytes that another server sends
            raise _no_answer(address, error) from error
    if kind != "Scheduler":
        raise _no_answer(address, ValueError(f"expected a scheduler, found a {kind}"))


async def _kind_of(address: str) -> str:
    """Ask what answers at an address."""
    connection = Security().get_connection_args("client")
    is_encrypted = address.startswith(("tls://", "wss://"))
    if is_encrypted and connection.get("ssl_context") is None:
        raise ValueError("Dask's configuration `distributed.comm.tls` names no certificates")
    seconds = _SECONDS_TO_CONNECT
    server = rpc(address, timeout=seconds, connection_args=connection)
    async with asyncio.timeout(2 * seconds), server:
        return str((await server.identity())["type"])


def _no_answer(address: str, error: Exception) -> WorkerError:
    return WorkerError(
        f"no Dask scheduler answers at {address}: {_reason(error)}",
        hint="Start one with `dask scheduler`, and workers with `dask worker ADDRESS`. "
        "The protocol has to be the scheduler's: tcp:// or, with certificates, tls://.",
    )


def _reason(error: BaseException) -> str:
    """Return in one line why a connection failed: with the first cause, if others are around it."""
    said = str(error) or type(error).__name__
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    cause = str(first) or type(first).__name__
    return " ".join((said if cause in said else f"{said} ({cause})").split())


def _address_in(path: Path) -> str:
    """Read the address from what a scheduler wrote; raises `WorkerError` for another file."""
    try:
        return check_address(json.loads(_head_of(path))["address"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise WorkerError(
            f"the scheduler file {path} does not say where a Dask scheduler is: {reason}",
            hint=f"Start one with `dask scheduler --scheduler-file {path}`.",
        ) from error


def _head_of(path: Path) -> bytes:
    """Read as much of a file as a scheduler writes; raises `OSError` or `ValueError` without one.

    A pipe is not waited for.
    """
    if path.exists() and not path.is_file():
        raise ValueError("expected a file")
    with path.open("rb") as file:
        return file.read(_LARGEST_FILE)


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
