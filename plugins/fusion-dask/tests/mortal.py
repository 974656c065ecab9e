"""Calls that kill their worker, hang, or fail in ways that cannot be sent back."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.weights import CheckpointSource

if TYPE_CHECKING:
    import torch


SHARD = 2**14  # bytes


class Mortal(CheckpointSource):
    """Kills the process that reads tensor 5, once for each file in the folder `DEATHS`."""

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        for death in sorted(Path(os.environ["DEATHS"]).iterdir()) if name == "5" else ():
            death.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name, start, stop)


def wait_for(path: str) -> None:
    """Create `begun`, wait for `may end`, and create `ended`."""
    Path(path, "begun").touch()
    while not Path(path, "may end").exists():
        time.sleep(0.01)
    Path(path, "ended").touch()


def need_absent() -> None:
    """Import a package that does not exist."""
    import nowhere_to_be_found  # type: ignore[import-not-found]  # noqa: F401


class Unreadable(Exception):  # noqa: N818 - plugins may name errors freely
    """An error that can be unpickled only in the process that raised it."""

    def __reduce__(self) -> tuple[object, ...]:
        return rebuild_in, (os.getpid(), str(self))


def rebuild_in(process: int, text: str) -> Unreadable:
    """Rebuild the error in its own process, and fail in others."""
    if process != os.getpid():
        raise ImportError("only the worker has this class")
    return Unreadable(text)


def fail(how: str) -> object:
    """Raise or return an object that the caller's process cannot unpickle."""
    match how:
        case "local class":
            kind = type("Local", (Exception,), {})
            raise kind("in its own words")
        case "unreadable":
            raise Unreadable("in its own words")
        case "no exception":
            raise SystemExit("in its own words")
        case _:
            return Unreadable("in its own words")
