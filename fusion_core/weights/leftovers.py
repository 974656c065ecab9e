"""What stopped runs left beside their outputs: found, described and removed, never a live run's."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.errors import DiskError, OutputError
from fusion_core.weights.disk import writing
from fusion_core.weights.journal import Journal
from fusion_core.weights.lock import locked, locked_outputs
from fusion_core.weights.workplace import Workplace, repair, workplaces_in

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leftover:
    """A staging directory whose run is dead, or still alive if it is `in_use`."""

    workplace: Workplace
    #: bytes that it takes on the disk
    size: int
    #: seconds since its run was last heard of
    age: float
    #: finished tensors, from which a run can go on
    tensors: int
    in_use: bool

    def remove(self) -> bool:
        """Remove it; False if a run has taken it up in the meantime, or something of it stays.

        Raises `DiskError` if nothing of it may be removed.
        """
        try:
            with locked(self.workplace.output), writing(self.workplace.path):
                self.workplace.remove()
                return not self.workplace.path.exists()
        except OutputError:
            return False


def leftovers(directory: Path) -> list[Leftover]:
    """Find the staging directories of all outputs in a directory.

    What dead runs left half done is put in order on the way: an output that was moved aside is
    put back, and what nobody can go on from is removed. What cannot be described, because it is
    another user's or its run has just ended, is left out and logged.
    """
    with writing(directory):
        outputs = {each.output for each in workplaces_in(directory)}
        outputs.update(locked_outputs(directory))
    return [each for output in sorted(outputs) for each in _readable(output)]


def _readable(output: Path) -> list[Leftover]:
    """Find those of one output; one that the file system refuses must not hide the others."""
    try:
        return _of(output)
    except DiskError as error:
        _log.warning("left out: %s", error.message)
        return []


def _of(output: Path) -> list[Leftover]:
    try:
        with locked(output):
            return [_described(each, in_use=False) for each in repair(output)]
    except OutputError:
        found = (each for each in workplaces_in(output.parent) if each.output == output)
        return [_described(each, in_use=True) for each in found]


def _described(workplace: Workplace, *, in_use: bool) -> Leftover:
    with writing(workplace.path):
        age = max(0.0, time.time() - workplace.touched)
        tensors = len(Journal(workplace.journal).tensors)
        return Leftover(workplace, workplace.size, age, tensors, in_use)
