"""Checkpoints whose reading kills the worker: what a machine that fails looks like from outside."""

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
    """Kills the process that reads tensor 5 while there are files in a folder; each kills once."""

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        for death in sorted(Path(os.environ["DEATHS"]).iterdir()) if name == "5" else ():
            death.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name, start, stop)


def wait_for(path: str) -> None:
    """Say that it has begun, go on until it may end, and say that it has."""
    Path(path, "begun").touch()
    while not Path(path, "may end").exists():
        time.sleep(0.01)
    Path(path, "ended").touch()


def need_absent() -> None:
    """Need a package that is not there."""
    import nowhere_to_be_found  # type: ignore[import-not-found]  # noqa: F401


class Unreadable(Exception):  # noqa: N818 - whatever a plugin calls it
    """An error that only the process which raised it can make again."""

    def __reduce__(self) -> tuple[object, ...]:
        return make_only_in, (os.getpid(), str(self))


def make_only_in(process: int, text: str) -> Unreadable:
    """Make the error again, in its own process."""
    if process != os.getpid():
        raise ImportError("only the worker has this class")
    return Unreadable(text)


def fail(how: str) -> object:
    """Raise, or return, what the caller's process cannot make again."""
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
