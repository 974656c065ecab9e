"""What stopped runs left: found, described and removed, never a live run's.

That is staging directories and locks beside outputs, and files there or in outputs that were about
to take another's place. To find them writes nothing.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fusion_core.errors import DiskError, OutputError
from fusion_core.weights.writing._journal import Journal
from fusion_core.weights.writing.disk import target_of, writing
from fusion_core.weights.writing.lock import is_locked, lock_of, locked, locked_outputs
from fusion_core.weights.writing.ours import is_directory, is_held, is_single
from fusion_core.weights.writing.target import PROVENANCE
from fusion_core.weights.writing.workplace import Workplace, workplaces_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leftover:
    """Something whose run is dead, or still alive if it is `in_use`."""

    path: Path
    #: the output, or the file in one, that was being written
    output: Path
    #: bytes that it takes on the disk
    size: int
    #: seconds since its run was last heard of
    age: float
    #: finished tensors, from which a run can go on; None for what is not a staging directory
    tensors: int | None
    in_use: bool
    #: raises `OutputError` if a run has taken it up
    removal: Callable[[], None]

    def remove(self) -> bool:
        """Remove it; False if a run has taken it up in the meantime.

        Raises `DiskError` if it may not be removed, or something of it.
        """
        try:
            with writing(self.path):
                self.removal()
        except OutputError:
            return False
        if os.path.lexists(self.path):
            raise DiskError(f"{self.path} cannot be removed", hint="Some of it is another user's.")
        return True


def leftovers(directory: Path) -> list[Leftover]:
    """Find what is left of all outputs in a directory; locks come first, which others need.

    What cannot be described, because it is another user's or its run has just ended, is left out
    and logged.
    """
    with writing(directory):
        outputs = [
            locked_output
            for locked_output in sorted(locked_outputs(directory))
            if not is_locked(locked_output)
        ]
        stale = [each for each in outputs if not is_directory(lock_of(each))]
        found = [
            *(partial(_lock, output) for output in stale),
            *(partial(_workplace, place) for place in workplaces_in(directory)),
            *(partial(_temporary, *pair) for pair in _temporaries(directory)),
        ]
    return [leftover for describe in found for leftover in _readable(describe)]


def _readable(describe: Callable[[], Leftover]) -> list[Leftover]:
    """Describe one; what the file system refuses must not hide the others."""
    try:
        return [describe()]
    except DiskError as error:
        _log.warning("left out: %s", error.message)
        return []


def _workplace(place: Workplace) -> Leftover:
    def remove() -> None:
        with locked(place.output):
            if place.is_ours:
                place.restore()
            place.remove()

    with writing(place.path):
        age, tensors = _age(place.touched), len(Journal(place.journal).tensors)
        is_alive = is_locked(place.output)
        return Leftover(place.path, place.output, place.size, age, tensors, is_alive, remove)


def _lock(output: Path) -> Leftover:
    def remove() -> None:
        if is_single(path):
            with locked(output):  # which removes it in the end
                return
        path.unlink(missing_ok=True)  # planted: it locks nothing

    path = lock_of(output)
    return _file(path, output, in_use=False, removal=remove)


def _temporary(path: Path, target: Path) -> Leftover:
    def remove() -> None:
        if is_held(path):
            raise OutputError(f"{target} is being written")
        path.unlink(missing_ok=True)

    return _file(path, target, in_use=is_held(path), removal=remove)


def _file(path: Path, output: Path, *, in_use: bool, removal: Callable[[], None]) -> Leftover:
    with writing(path):
        status = path.lstat()
    return Leftover(path, output, status.st_size, _age(status.st_mtime), None, in_use, removal)


def _temporaries(directory: Path) -> Iterator[tuple[Path, Path]]:
    """Yield those in a directory and in the outputs in it, with what they were to replace."""
    below = sorted(each for each in directory.iterdir() if is_directory(each))
    for folder in (directory, *(each for each in below if (each / PROVENANCE).is_file())):
        for path in sorted(folder.iterdir()):
            target = target_of(path)
            if target is not None:
                yield path, target


def _age(since: float) -> float:
    return max(0.0, time.time() - since)
