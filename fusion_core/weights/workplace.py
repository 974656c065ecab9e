"""The hidden directory beside an output in which the output is made, and those of dead runs.

`.<name>.fuse-<12 hexadecimal digits>/` holds `model/`, which becomes the output, `plan.json`,
`journal.jsonl`, and `state/` for an algorithm that can be resumed. Where directories cannot be
exchanged in one step, what is being replaced passes through `old/`.

Whoever restores or removes one must hold the output's lock.
"""

from __future__ import annotations

import re
import shutil
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.weights.disk import exchanged_at_once, sync_directory, write_durably, writing
from fusion_core.weights.fault import fault_point
from fusion_core.weights.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
        if self.old.exists() and self.model.exists() and not self.output.exists():
            self.old.rename(self.output)
            sync_directory(self.output.parent)

    def exchange_back(self) -> None:
        """Undo an `exchange`."""
        if self.old.exists():
            self.output.rename(self.model)
            self.restore()
        else:
            exchanged_at_once(self.model, self.output)

    @property
    def can_be_resumed(self) -> bool:
        """Whether a run may go on here; otherwise it is rubbish.

        It is if there never came to be a plan or any work, or if its output has been committed.
        """
        if not self.model.exists() or not self.plan.exists():
            return False
        journal = Journal(self.journal)
        if journal.committing not in {None, self.model.stat().st_ino}:
            return False
        return bool(journal.tensors) or any(self.state.iterdir())

    def continues(self, plan: bytes) -> bool:
        """Whether a run of this plan may go on here."""
        return self.plan.read_bytes() == plan

    @property
    def touched(self) -> float:
        """When its run was last heard of, in seconds since the epoch."""
        parts = (self.path, self.state, *self.path.iterdir(), *self.state.iterdir())
        return max(each.stat().st_mtime for each in parts)

    @property
    def size(self) -> int:
        """Bytes that it takes on the disk."""
        files = (each.stat() for each in self.path.rglob("*") if not each.is_symlink())
        return sum(getattr(each, "st_blocks", -(-each.st_size // 512)) * 512 for each in files)

    def remove_tensors(self) -> None:
        """Remove what was merged, and leave what an algorithm keeps."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.model)
        self.model.mkdir()

    def remove(self) -> None:
        """Remove it with everything in it, as far as the file system lets us.

        The plan goes first: what is half removed must not be resumed.
        """
        self.plan.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
        fault_point("workplace removed")


def workplaces_in(directory: Path) -> Iterator[Workplace]:
    """Yield those of all outputs in a directory, dead or alive, by name."""
    for path in sorted(directory.iterdir()):
        found = _NAME.fullmatch(path.name)
        if found is not None and path.is_dir() and not path.is_symlink():
            yield Workplace(path, path.with_name(found["output"]))


def repair(output: Path) -> list[Workplace]:
    """Undo or finish what dead runs left half done; returns what can be resumed of the output."""
    with writing(output):
        kept = []
        for each in list(workplaces_in(output.parent)):
            if each.output.name == output.name:
                each.restore()
                if each.can_be_resumed:
                    kept.append(each)
                else:
                    each.remove()
        return kept
