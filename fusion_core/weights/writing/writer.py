"""Write a model directory that is either complete or not there.

Everything is written in a hidden directory beside the output (`workplace.py`), which one run at a
time may have (`lock.py`). Shards are laid out beforehand: every size is known from the plan, so a
full disk is found before any work. Tensors land at fixed offsets in any order, and what is finished
is recorded (`follower.py`, `journal.py`), so that a run that was stopped can be resumed. A shard's
header comes last: until then its first bytes are zero and no reader accepts it. Committing syncs
files and directories and renames the directory. docs/explanation/commit-protocol.md goes through
every step and what a crash after it leaves.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.errors import (
    BrokenPluginError,
    CheckpointError,
    DiskError,
    FusionError,
    OutputError,
    WorkerError,
)
from fusion_core.weights.merging.shortage import is_out_of_memory
from fusion_core.weights.reading.checkpoint import CheckpointSource
from fusion_core.weights.reading.containment import open_named, reading
from fusion_core.weights.reading.location import INDEX
from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing._follower import Follower
from fusion_core.weights.writing._journal import Journal
from fusion_core.weights.writing._layout import Layout
from fusion_core.weights.writing._shards import Shards
from fusion_core.weights.writing.digest import tensors_digest
from fusion_core.weights.writing.disk import sync_directory, write_new, writing
from fusion_core.weights.writing.ours import is_directory
from fusion_core.weights.writing.target import check_output, is_plain, present

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from fusion_core.weights.source import TensorInfo
    from fusion_core.weights.writing.workplace import Workplace

_CHUNK = 2**20

#: What stops a run from outside: the work that is done is good. So is it where memory ran out.
_FROM_OUTSIDE = (DiskError, OutputError, WorkerError)


class Staging:
    """A model directory in the making; `staged` opens one."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self.shards = Shards(Layout([]), {})
        self._journal = Journal(workplace.journal)
        self._follower: Follower | None = None
        self._side_files: dict[str, tuple[int, str]] = {}

    @property
    def directory(self) -> Path:
        """Where the files are, until they are committed."""
        return self.workplace.model

    @property
    def state(self) -> Path:
        """A directory for what an algorithm needs to be resumed; never part of the output."""
        return self.workplace.state

    @property
    def finished_tensors(self) -> frozenset[str]:
        """Names of those that need not be written: finished before, recorded and verified."""
        return frozenset(self._journal.tensors)

    def lay_out(self, infos: Sequence[TensorInfo], *, shard_size: int) -> None:
        """Reserve the space of every tensor, in files of at most `shard_size` bytes.

        What an earlier run finished is kept if it is laid out in the same way.
        """
        layout = Layout.of(infos, shard_size)
        is_same = self._journal.layout == layout.sha256
        names = {shard.file for shard in layout.shards} if is_same else set()
        with writing(self.directory):
            for path in list(self.directory.iterdir()):
                if is_directory(path):
                    shutil.rmtree(path)
                elif path.name not in names:
                    path.unlink()
        self.shards = Shards.reserve(layout, self.directory)
        intact = self.shards.intact(self._journal.tensors) if is_same else {}
        self._journal.begin(layout.sha256, intact)
        with writing(self.directory):
            sync_directory(self.directory)
            sync_directory(self.workplace.path)
        self._follower = Follower(layout, self.shards.files, self._journal)
        fault_point("laid out")

    def finished(self, name: str) -> None:
        """Learn that all of a tensor is written; it is then hashed, made durable and recorded."""
        self._following.finished(name)

    def add(self, name: str, content: bytes | Path | Iterable[bytes]) -> None:
        """Add a side file: its bytes, at once or one part after the other, or a file to copy.

        It may lie in a folder. Raises `BrokenPluginError` for a name that leads elsewhere or is
        taken: names come from algorithms and pools.
        """
        if not is_plain(name) or (self.directory / name).exists():
            raise BrokenPluginError(f"{name!r} cannot be the name of a side file, or is taken")
        path = self._folder_of(name) / Path(name).name
        size, digest = 0, hashlib.sha256()

        def chunks() -> Iterator[bytes]:
            nonlocal size
            for chunk in _chunks_of(content):
                size += len(chunk)
                digest.update(chunk)
                yield chunk

        write_new(path, chunks())
        if path.parent != self.directory:
            with writing(path.parent):
                sync_directory(path.parent)
        self._side_files[name] = (size, digest.hexdigest())

    def _folder_of(self, name: str) -> Path:
        folder = (self.directory / name).parent
        with writing(folder):
            if not is_directory(folder):
                folder.mkdir()
        return folder

    def finish_shards(self) -> None:
        """Complete every shard, and the index if there are several."""
        self._following.complete()
        self.shards.complete()
        index = self.shards.layout.index()
        if index is not None:
            self.add(INDEX, index)

    @property
    def side_files(self) -> Mapping[str, tuple[int, str]]:
        """Size and SHA-256 of every file but the shards, by name."""
        return self._side_files

    @property
    def tensors_digest(self) -> str:
        """One digest of all tensors, whatever the shard size, once the shards are finished."""
        found = self._following.tensor_digests
        places = self.shards.layout.places.items()
        return tensors_digest({name: (place.info, found[name]) for name, place in places})

    def commit(self, *, overwrite: bool) -> None:
        """Put the directory in its place in one step, or leave what is there as it was.

        What it replaces is then in the workplace, and goes with that.
        """
        self._verify()
        output = self.workplace.output
        with writing(output):
            sync_directory(self.directory)
            self._journal.commit(self.directory.stat().st_ino)
            fault_point("commit recorded")
            was_empty = output.exists() and not any(output.iterdir())
            replaces = overwrite and output.exists()
            if replaces:
                check_output(output, overwrite=True)  # somebody may have put something there
                self.workplace.exchange()
            else:
                self._move_in()
            fault_point("in place")
            try:
                sync_directory(output.absolute().parent)
            except BaseException:
                self._withdraw(replaces=replaces, was_empty=was_empty)
                raise
        fault_point("committed")

    @property
    def _following(self) -> Follower:
        assert self._follower is not None, "lay_out comes first"  # noqa: S101
        return self._follower

    def _verify(self) -> None:
        """Read every header back, strictly, and compare it with the plan."""
        expected = {name: place.info for name, place in self.shards.layout.places.items()}
        try:
            found = CheckpointSource(self.directory).infos
        except CheckpointError as error:
            raise DiskError(f"what was written does not read back: {error.message}") from error
        if list(found.items()) != list(expected.items()):
            raise DiskError(f"{self.directory} does not read back as it was written")
        fault_point("verified")

    def _move_in(self) -> None:
        try:
            self.directory.rename(self.workplace.output)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            raise present(self.workplace.output) from error

    def _withdraw(self, *, replaces: bool, was_empty: bool) -> None:
        """Take back what could not be made durable."""
        output = self.workplace.output
        if replaces:
            self.workplace.exchange_back()
            return
        output.rename(self.directory)
        if was_empty:
            output.mkdir()

    def close(self, error: BaseException | None) -> None:
        """Stop what goes on in the background, and remove all that cannot be gone on from.

        Work is kept if what stopped the run lies outside of it. Another `FusionError` says that
        the recipe or its inputs have to change. Any other exception is somebody's bug: tensors may
        be wrong, and only what an algorithm keeps stays.
        """
        is_outside = _lies_outside(error)
        is_wanted = error is not None and self.workplace.plan.exists()
        if self._follower is not None:
            self._follower.close(record=is_wanted and is_outside)
        self.shards, self._follower = Shards(Layout([]), {}), None
        self._journal.close()
        with suppress(DiskError, OSError):  # where even this fails, `fuse clean` will do it
            if is_wanted and not is_outside and not isinstance(error, FusionError):
                self.workplace.remove_tensors()
            is_of_use = is_outside or not isinstance(error, FusionError)
            if error is not None and is_of_use and self.workplace.can_be_resumed:
                error.add_note("What is done is kept: the same command with --resume goes on.")
            else:
                self.workplace.remove()


def _lies_outside(error: BaseException | None) -> bool:
    is_interrupt = not isinstance(error, Exception)
    return is_interrupt or isinstance(error, _FROM_OUTSIDE) or is_out_of_memory(error)


def _chunks_of(content: bytes | Path | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Path):
        yield from _copied(content)
    else:
        yield from content


def _copied(path: Path) -> Iterator[bytes]:
    with reading(path), os.fdopen(open_named(path), "rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
