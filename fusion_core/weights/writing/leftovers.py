"""Leftovers of stopped runs: staging directories, lock files and temporary files.

Finding them writes nothing. Removing one never touches a live run's files.
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
from fusion_core.weights.writing.disk import report_disk_errors, target_of
from fusion_core.weights.writing.lock import is_locked, lock_of, lock_output, locked_outputs
from fusion_core.weights.writing.ownership import is_directory, is_held, is_single_file
from fusion_core.weights.writing.provenance import PROVENANCE
from fusion_core.weights.writing.workspace import Workspace, find_workspaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leftover:
    """A file or directory of a dead run or, if it is `in_use`, of a live one."""

    path: Path
    #: the output, or the file in one, that was being written
    output: Path
    #: bytes on the disk
    size: int
    #: seconds since its run last changed it
    age: float
    #: finished tensors that a run can resume from; None for anything but a staging directory
    tensors: int | None
    in_use: bool
    #: removes it, or raises `OutputError` if a run uses it
    removal: Callable[[], None]

    def remove(self) -> bool:
        """Remove it. Return False if a run uses it by now.

        Raises `DiskError` if all or part of it cannot be removed.
        """
        try:
            with report_disk_errors(self.path):
                self.removal()
        except OutputError:
            return False
        if os.path.lexists(self.path):
            raise DiskError(
                f"{self.path} cannot be removed", hint="Another user owns it, or part of it."
            )
        return True


def find_leftovers(directory: Path) -> list[Leftover]:
    """Return the leftovers of all outputs in a directory, stale locks first.

    Entries that cannot be read are skipped and logged. They belong to another user, or their run
    has just ended.
    """
    with report_disk_errors(directory):
        unlocked = [path for path in sorted(locked_outputs(directory)) if not is_locked(path)]
        stale = [output for output in unlocked if not is_directory(lock_of(output))]
        candidates = [
            *(partial(_describe_lock, output) for output in stale),
            *(partial(_describe_workspace, workspace) for workspace in find_workspaces(directory)),
            *(partial(_describe_temporary, *pair) for pair in _temporaries(directory)),
        ]
    described = []
    for describe in candidates:
        try:
            described.append(describe())
        except DiskError as error:
            _log.warning("skipping a leftover: %s", error.message)
    return described


def _describe_workspace(workspace: Workspace) -> Leftover:
    def remove() -> None:
        with lock_output(workspace.output):
            if workspace.is_own:
                workspace.restore()
            workspace.remove()

    with report_disk_errors(workspace.path):
        return Leftover(
            workspace.path,
            workspace.output,
            workspace.size,
            _age(workspace.last_change),
            len(Journal(workspace.journal).tensors),
            is_locked(workspace.output),
            remove,
        )


def _describe_lock(output: Path) -> Leftover:
    path = lock_of(output)

    def remove() -> None:
        if is_single_file(path):
            with lock_output(output):  # which removes the lock file when it ends
                return
        path.unlink(missing_ok=True)  # somebody planted it: no run can lock it

    return _describe_file(path, output, in_use=False, removal=remove)


def _describe_temporary(path: Path, target: Path) -> Leftover:
    def remove() -> None:
        if is_held(path):
            raise OutputError(f"{target} is being written")
        path.unlink(missing_ok=True)

    return _describe_file(path, target, in_use=is_held(path), removal=remove)


def _describe_file(
    path: Path, output: Path, *, in_use: bool, removal: Callable[[], None]
) -> Leftover:
    with report_disk_errors(path):
        status = path.lstat()
    return Leftover(path, output, status.st_size, _age(status.st_mtime), None, in_use, removal)


def _temporaries(directory: Path) -> Iterator[tuple[Path, Path]]:
    """Yield temporary files in a directory and in the outputs there, with their targets."""
    subdirectories = sorted(path for path in directory.iterdir() if is_directory(path))
    outputs = [path for path in subdirectories if (path / PROVENANCE).is_file()]
    for folder in (directory, *outputs):
        for path in sorted(folder.iterdir()):
            target = target_of(path)
            if target is not None:
                yield path, target


def _age(since: float) -> float:
    return max(0.0, time.time() - since)
