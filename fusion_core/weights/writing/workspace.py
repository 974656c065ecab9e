"""The hidden staging directory next to an output in which a run makes that output.

`.<name>.fuse-<12 hexadecimal digits>/` holds `model/`, which becomes the output, `plan.json`,
`journal.jsonl`, and `state/` for algorithms that can be resumed. Where two directories cannot be
exchanged in one step, the replaced output passes through `old/`.

A caller that restores or removes a staging directory must hold the output's lock. Other users may
be able to write to the parent directory. Work is therefore resumed, and an output put back, only if
this user owns all of it and no link leads out of it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights.reading.untrusted_json import LARGEST_HEADER, parse_json
from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing._journal import Journal
from fusion_core.weights.writing.disk import (
    exchange_atomically,
    report_disk_errors,
    sync_directory,
    write_durably,
)
from fusion_core.weights.writing.ownership import is_directory, read_own_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: No run of this program makes a directory that it cannot list.
_UNLISTABLE = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
_NAME = re.compile(r"\.(?P<output>.+)\.fuse-[0-9a-f]{12}", re.DOTALL)


class Workspace:
    """A staging directory and its parts. It need not exist."""

    def __init__(self, path: Path, output: Path) -> None:
        self.path = path
        self.output = output
        #: becomes the output
        self.model = path / "model"
        #: the replaced output, while directories are exchanged in two steps
        self.old = path / "old"
        #: what the run does: a run of the same plan may resume it
        self.plan = path / "plan.json"
        self.journal = path / "journal.jsonl"
        #: what an algorithm needs to resume
        self.state = path / "state"

    @classmethod
    def unused(cls, output: Path) -> Workspace:
        """Return a new one for an output, without creating it."""
        return cls(output.with_name(f".{output.name}.fuse-{uuid.uuid4().hex[:12]}"), output)

    def create(self, plan: bytes | None) -> None:
        """Create the directories, and the plan of a run that can be resumed."""
        with report_disk_errors(self.path):
            for directory in (self.path, self.model, self.state):
                directory.mkdir()
            fault_point("workspace created")
            sync_directory(self.path.parent)
        if plan is not None:
            write_durably(self.plan, plan)
            fault_point("plan written")

    def exchange(self) -> None:
        """Exchange `model` and the output: in one step, or by way of `old`.

        After an exception, or a crash and `restore`, the output is either the old or the new one.
        """
        if exchange_atomically(self.model, self.output):
            return
        try:
            self.output.rename(self.old)
            fault_point("old output moved aside")
            self.model.rename(self.output)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put the old output back if a run moved it aside and did not replace it."""
        has_both = is_directory(self.old) and is_directory(self.model)
        if has_both and not os.path.lexists(self.output):
            self.old.rename(self.output)
            sync_directory(self.output.parent)

    def undo_exchange(self) -> None:
        """Undo a completed `exchange`."""
        if is_directory(self.old):
            self.output.rename(self.model)
            self.restore()
        else:
            exchange_atomically(self.model, self.output)

    @property
    def is_own(self) -> bool:
        """Whether this user owns the directory."""
        return self.path.lstat().st_uid == os.geteuid()

    @property
    def can_be_resumed(self) -> bool:
        """Whether a run may resume here.

        Nothing can be resumed if the run got to no plan or no work, if its output has been
        committed, or if the directory holds anything that a run does not leave.
        """
        if not self._is_intact():
            return False
        journal = Journal(self.journal)
        if journal.committing not in {None, self.model.stat().st_ino}:
            return False
        return bool(journal.tensors) or any(self.state.iterdir())

    def _is_intact(self) -> bool:
        """Tell whether every part exists, and nobody planted a link, a pipe or a hard link."""
        if not (is_directory(self.model) and is_directory(self.state) and self.plan.is_file()):
            return False
        try:
            for path, status in _walk(self.path):
                if stat.S_ISDIR(status.st_mode):
                    parts = {self.model, self.state, self.old}
                    is_known = path.parent != self.path or path in parts
                else:
                    is_known = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
                if not is_known or status.st_uid != os.geteuid():
                    return False
        except OSError as error:
            if error.errno in _UNLISTABLE:
                return False
            raise
        return True

    def has_plan(self, plan: bytes) -> bool:
        """Tell whether this is the work of a run with the same plan."""
        return read_own_file(self.plan, len(plan) + 1) == plan

    @property
    def recipe(self) -> Any:  # noqa: ANN401 - JSON
        """The recipe in the plan, or None without one."""
        with suppress(OSError, CheckpointError):
            plan = read_own_file(self.plan, LARGEST_HEADER) or b""
            return parse_json(plan, path=str(self.plan)).get("recipe")
        return None

    @property
    def last_change(self) -> float:
        """When the run last changed anything, in seconds since the epoch."""
        times = (status.st_mtime for _, status in _walk(self.path))
        return max(times, default=self.path.lstat().st_mtime)

    @property
    def size(self) -> int:
        """The bytes that all files take on the disk."""
        return sum(status.st_blocks * 512 for _, status in _walk(self.path))

    def remove_tensors(self) -> None:
        """Remove the merged tensors, and keep the algorithm's state."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.model)
        self.model.mkdir()

    def remove(self) -> None:
        """Remove the directory, as far as the file system permits.

        The plan goes first, so that no run resumes a half-removed directory.
        """
        if not is_directory(self.plan):
            self.plan.unlink(missing_ok=True)
        with suppress(RecursionError):  # a run never nests directories that deep
            shutil.rmtree(self.path, ignore_errors=True)
        fault_point("workspace removed")


def find_workspaces(directory: Path) -> Iterator[Workspace]:
    """Yield the staging directories of all outputs in a directory, of dead and live runs."""
    for path in sorted(directory.iterdir() if directory.is_dir() else ()):
        match = _NAME.fullmatch(path.name)
        if match is not None and is_directory(path):
            yield Workspace(path, path.with_name(match["output"]))


def _walk(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield every entry below a directory with its status, without following links."""
    directories = [directory]
    while directories:
        for path in directories.pop().iterdir():
            with suppress(FileNotFoundError):  # a live run has just removed it
                status = path.lstat()
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    directories.append(path)


def repair(output: Path) -> list[Workspace]:
    """Undo or finish what dead runs left half done, and return the work that can be resumed."""
    with report_disk_errors(output):
        resumable = []
        for workspace in list(find_workspaces(output.parent)):
            if workspace.output.name == output.name and workspace.is_own:
                workspace.restore()
                if workspace.can_be_resumed:
                    resumable.append(workspace)
                else:
                    workspace.remove()
        return resumable
