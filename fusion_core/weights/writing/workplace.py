"""The hidden directory beside an output in which the output is made, and those of dead runs.

`.<name>.fuse-<12 hexadecimal digits>/` holds `model/`, which becomes the output, `plan.json`,
`journal.jsonl`, and `state/` for an algorithm that can be resumed. Where directories cannot be
exchanged in one step, what is being replaced passes through `old/`.

Whoever restores or removes one must hold the output's lock. Others may be able to fill the
directory that it lies in: work is gone on from, and outputs are put back, only where all of it is
ours, and no link leads out of it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.errors import CheckpointError
from fusion_core.weights.reading.untrusted import LARGEST_HEADER, parse_json
from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing._journal import Journal
from fusion_core.weights.writing.disk import (
    exchanged_at_once,
    sync_directory,
    write_durably,
    writing,
)
from fusion_core.weights.writing.ours import is_directory, read_ours

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A directory in a workplace that we cannot list is not one that a run of ours made.
_CLOSED = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
_NAME = re.compile(r"\.(?P<output>.+)\.fuse-[0-9a-f]{12}", re.DOTALL)


@dataclass(frozen=True)
class Workplace:
    """One such directory and its parts."""

    path: Path
    output: Path

    @classmethod
    def beside(cls, output: Path) -> Workplace:
        """Return a new one, which is not made yet."""
        return cls(output.with_name(f".{output.name}.fuse-{uuid.uuid4().hex[:12]}"), output)

    @property
    def model(self) -> Path:
        """What becomes the output."""
        return self.path / "model"

    @property
    def old(self) -> Path:
        """Where what is replaced waits while it and the output have no name."""
        return self.path / "old"

    @property
    def plan(self) -> Path:
        """What the run was to do: a run that is to do the same may go on here."""
        return self.path / "plan.json"

    @property
    def journal(self) -> Path:
        """What is finished."""
        return self.path / "journal.jsonl"

    @property
    def state(self) -> Path:
        """What an algorithm keeps to be resumed."""
        return self.path / "state"

    def make(self, plan: bytes | None) -> None:
        """Make the directory, with a plan if its run can be resumed."""
        with writing(self.path):
            for each in (self.path, self.model, self.state):
                each.mkdir()
            fault_point("workplace made")
            sync_directory(self.path.parent)
        if plan is not None:
            write_durably(self.plan, plan)
            fault_point("plan written")

    def exchange(self) -> None:
        """Let what was made and what is there change places: at once, or by way of `old`.

        After an exception, or once `restore` was called after a crash, either has its place.
        """
        if exchanged_at_once(self.model, self.output):
            return
        try:
            self.output.rename(self.old)
            fault_point("old output moved aside")
            self.model.rename(self.output)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put back what a run moved aside, if it came no further."""
        has_both = is_directory(self.old) and is_directory(self.model)
        if has_both and not os.path.lexists(self.output):
            self.old.rename(self.output)
            sync_directory(self.output.parent)

    def exchange_back(self) -> None:
        """Undo an `exchange`."""
        if is_directory(self.old):
            self.output.rename(self.model)
            self.restore()
        else:
            exchanged_at_once(self.model, self.output)

    @property
    def is_ours(self) -> bool:
        """Whether this user made the directory."""
        return self.path.lstat().st_uid == os.geteuid()

    @property
    def is_sound(self) -> bool:
        """Whether it is as a run leaves it: every part there, and nothing that others planted."""
        if not (is_directory(self.model) and is_directory(self.state) and self.plan.is_file()):
            return False
        try:
            return all(self._is_part(path, status) for path, status in _below(self.path))
        except OSError as error:
            if error.errno in _CLOSED:
                return False
            raise

    def _is_part(self, path: Path, status: os.stat_result) -> bool:
        """Tell whether a run may have made something: no link, pipe or file of other names."""
        if stat.S_ISDIR(status.st_mode):
            is_known = path.parent != self.path or path in {self.model, self.state, self.old}
            return status.st_uid == os.geteuid() and is_known
        is_single = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        return status.st_uid == os.geteuid() and is_single

    @property
    def can_be_resumed(self) -> bool:
        """Whether a run may go on here; otherwise it is rubbish.

        It is if something in it is not as a run leaves it, if there never came to be a plan or any
        work, or if its output has been committed.
        """
        if not self.is_sound:
            return False
        journal = Journal(self.journal)
        if journal.committing not in {None, self.model.stat().st_ino}:
            return False
        return bool(journal.tensors) or any(self.state.iterdir())

    def continues(self, plan: bytes) -> bool:
        """Whether a run of this plan may go on here."""
        return read_ours(self.plan, len(plan) + 1) == plan

    @property
    def recipe(self) -> Any:  # noqa: ANN401 - JSON
        """The recipe in its plan; None if there is none."""
        with suppress(OSError, CheckpointError):
            plan = read_ours(self.plan, LARGEST_HEADER) or b""
            return parse_json(plan, path=str(self.plan)).get("recipe")
        return None

    @property
    def touched(self) -> float:
        """When its run was last heard of, in seconds since the epoch."""
        times = (status.st_mtime for _, status in _below(self.path))
        return max(times, default=self.path.lstat().st_mtime)

    @property
    def size(self) -> int:
        """Bytes that it takes on the disk."""
        return sum(
            getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
            for _, status in _below(self.path)
        )

    def remove_tensors(self) -> None:
        """Remove what was merged, and leave what an algorithm keeps."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.model)
        self.model.mkdir()

    def remove(self) -> None:
        """Remove it with everything in it, as far as the file system lets us.

        The plan goes first: what is half removed must not be resumed.
        """
        if not is_directory(self.plan):
            self.plan.unlink(missing_ok=True)
        with suppress(RecursionError):  # nested as no run does
            shutil.rmtree(self.path, ignore_errors=True)
        fault_point("workplace removed")


def workplaces_in(directory: Path) -> Iterator[Workplace]:
    """Yield those of all outputs in a directory, dead or alive, by name."""
    for path in sorted(directory.iterdir() if directory.is_dir() else ()):
        found = _NAME.fullmatch(path.name)
        if found is not None and is_directory(path):
            yield Workplace(path, path.with_name(found["output"]))


def _below(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Describe everything in a directory, however deep, and follow no link."""
    directories = [directory]
    while directories:
        for path in directories.pop().iterdir():
            with suppress(FileNotFoundError):  # of a run that is alive
                status = path.lstat()
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    directories.append(path)


def repair(output: Path) -> list[Workplace]:
    """Undo or finish what dead runs left half done; returns what can be resumed of the output."""
    with writing(output):
        kept = []
        for place in list(workplaces_in(output.parent)):
            if place.output.name == output.name and place.is_ours:
                place.restore()
                if place.can_be_resumed:
                    kept.append(place)
                else:
                    place.remove()
        return kept
