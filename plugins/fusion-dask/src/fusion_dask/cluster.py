"""Connections to a scheduler: a running one, or a local one with its own workers."""

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

_LOCALHOST = "127.0.0.1"
_LARGEST_FILE = 2**20
_SECONDS_TO_CONNECT = 5.0


@contextmanager
def connect(config: DaskConfig) -> Iterator[Client]:
    """Connect to the configured scheduler; raises `WorkerError` if it does not answer."""
    if config.is_local:
        workers = config.workers or _count_cores()
        with _local_scheduler(workers) as address, _client(address) as client:
            yield client
    else:
        address = config.address or _read_address(Path(config.scheduler_file or ""))
        with _client(address) as client:
            yield client


@contextmanager
def _local_scheduler(workers: int) -> Iterator[str]:
    """Start a scheduler with worker processes on this machine; yields its address.

    The workers are programs of their own and do not import the caller's `__main__`. They have one
    thread each and no memory limit, and they end with the scheduler, however that ends.
    """
    logging.getLogger("distributed").setLevel(logging.WARNING)  # some log after the diversion ends
    with TemporaryDirectory(prefix="fusion-dask-") as directory:
        quiet = logging.CRITICAL
        server = {"host": _LOCALHOST, "port": 0, "dashboard": False, "dashboard_address": ":0"}
        server["local_directory"] = directory
        options = {"nthreads": 1, "memory_limit": 0}
        worker = {
            "worker_class": "distributed.Worker",
            "worker_kwargs": {**server, **options, "silence_logs": quiet},
        }
        with SpecCluster(
            workers={n: {"cls": _LocalWorker, "options": worker} for n in range(workers)},
            scheduler={"cls": Scheduler, "options": server},
            silence_logs=quiet,
        ) as cluster:
            yield cluster.scheduler_address


class _LocalWorker(SubprocessWorker):
    """A worker in a session of its own: Ctrl-C does not reach it, so it finishes its task."""

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

    A client would wait for ever for a server that never answers, and its remains would complain on
    stderr. So this asks before there is a client, and in a thread, because a notebook's event loop
    runs in this one.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fusion-dask-probe") as thread:
        try:
            kind = thread.submit(asyncio.run, _ask_kind(address)).result()
        except TimeoutError as error:
            reason = ValueError("a server accepts the connection but sends nothing")
            raise _no_answer(address, error if str(error) else reason) from error
        except Exception as error:  # another kind of server may send any bytes
            raise _no_answer(address, error) from error
    if kind != "Scheduler":
        raise _no_answer(address, ValueError(f"expected a scheduler, found a {kind}"))


async def _ask_kind(address: str) -> str:
    """Ask the server at an address for its kind."""
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
        f"no Dask scheduler answers at {address}: {_describe_failure(error)}",
        hint="Start one with `dask scheduler`, and workers with `dask worker ADDRESS`. "
        "Use the scheduler's protocol: tcp:// or, with certificates, tls://.",
    )


def _describe_failure(error: BaseException) -> str:
    """Return in one line why a connection failed, with the first cause."""
    text = str(error) or type(error).__name__
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    cause = str(first) or type(first).__name__
    return " ".join((text if cause in text else f"{text} ({cause})").split())


def _read_address(path: Path) -> str:
    """Read the address from a scheduler file; raises `WorkerError` for another file."""
    try:
        return check_address(json.loads(_read_file(path))["address"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise WorkerError(
            f"the scheduler file {path} has no address of a Dask scheduler: {reason}",
            hint=f"Start one with `dask scheduler --scheduler-file {path}`.",
        ) from error


def _read_file(path: Path) -> bytes:
    """Read at most as much as a scheduler writes, without waiting for a pipe."""
    if path.exists() and not path.is_file():
        raise ValueError("expected a file")
    with path.open("rb") as file:
        return file.read(_LARGEST_FILE)


def _count_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
