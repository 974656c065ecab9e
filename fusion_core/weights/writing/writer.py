"""Write a model directory so that it is either complete or absent.

Everything is written in a hidden directory next to the output (`workspace.py`), which the output's
lock (`lock.py`) reserves for one run. The plan determines every size, so the shards are laid out
first and a full disk is found before any work. Tensors are written at fixed offsets in any order.
Finished tensors are recorded (`_journal.py`), so that a stopped run can be resumed.
A shard's header is written last: until then it is zeros, which no reader accepts. The commit syncs
files and directories and renames the directory. docs/explanation/commit-protocol.md describes every
step and what a crash after it leaves.
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
from fusion_core.weights.merging.memory_errors import is_out_of_memory
from fusion_core.weights.reading.checkpoint import CheckpointSource
from fusion_core.weights.reading.containment import open_named, report_unreadable
from fusion_core.weights.reading.location import INDEX, SINGLE
from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing._journal import Journal, Recorder
from fusion_core.weights.writing._shards import STEM, Layout, Shards
from fusion_core.weights.writing.digest import tensors_digest
from fusion_core.weights.writing.disk import report_disk_errors, sync_directory, write_new
from fusion_core.weights.writing.output_path import check_output, is_side_file_name, output_exists
from fusion_core.weights.writing.ownership import is_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fusion_core.weights.source import TensorInfo
    from fusion_core.weights.writing.workspace import Workspace

_CHUNK = 2**20

#: Errors that stop a run from outside, so that the finished work is good.
_FROM_OUTSIDE = (DiskError, OutputError, WorkerError)


class Staging:
    """A model directory in the making. `stage_output` opens one."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        #: where the files are until they are committed
        self.directory = workspace.model
        #: holds what an algorithm needs to resume; never part of the output
        self.state = workspace.state
        self.shards = Shards(Layout([]), {})
        #: size and SHA-256 of every file except the shards, by name
        self.side_files: dict[str, tuple[int, str]] = {}
        self._journal = Journal(workspace.journal)
        self._recorder: Recorder | None = None

    @property
    def finished_tensors(self) -> frozenset[str]:
        """The names of tensors that are written, verified and recorded."""
        return frozenset(self._journal.tensors)

    def lay_out(self, infos: Sequence[TensorInfo], *, shard_size: int, stem: str = STEM) -> None:
        """Reserve the space of every tensor, in files of at most `shard_size` bytes.

        Tensors that an earlier run finished in the same layout are kept.
        """
        layout = Layout.of(infos, shard_size, stem)
        is_same = self._journal.layout == layout.sha256
        reusable = {shard.file for shard in layout.shards} if is_same else set()
        with report_disk_errors(self.directory):
            for path in list(self.directory.iterdir()):
                if is_directory(path):
                    shutil.rmtree(path)
                elif path.name not in reusable:
                    path.unlink()
        self.shards = Shards.reserve(layout, self.directory)
        intact = self.shards.intact_tensors(self._journal.tensors) if is_same else {}
        self._journal.begin(layout.sha256, intact)
        with report_disk_errors(self.directory):
            sync_directory(self.directory)
            sync_directory(self.workspace.path)
        self._recorder = Recorder(self.shards, self._journal)
        fault_point("laid out")

    def mark_finished(self, info: TensorInfo) -> None:
        """Have a completely written tensor hashed, synced and recorded in the background."""
        assert self._recorder is not None, "call lay_out first"  # noqa: S101
        self._recorder.add(info)

    def finish_shards(self) -> None:
        """Complete every shard, and write the index if there are several."""
        assert self._recorder is not None, "call lay_out first"  # noqa: S101
        self._recorder.complete()
        self.shards.complete()
        index = self.shards.layout.index()
        if index is not None:
            self.add(INDEX, index)

    def add(self, name: str, content: bytes | Path | Iterable[bytes]) -> None:
        """Add a side file from its bytes, from an iterable of chunks, or from a file to copy.

        The name may include one folder. Raises `BrokenPluginError` for an invalid or duplicate
        name, because names come from algorithms and pools.
        """
        path = self.directory / name
        if not is_side_file_name(name) or path.exists():
            raise BrokenPluginError(f"side file {name!r} has an invalid or duplicate name")
        with report_disk_errors(path.parent):
            if not is_directory(path.parent):
                path.parent.mkdir()
        size, digest = 0, hashlib.sha256()

        def hashed_chunks() -> Iterator[bytes]:
            nonlocal size
            for chunk in _chunks_of(content):
                size += len(chunk)
                digest.update(chunk)
                yield chunk

        write_new(path, hashed_chunks())
        if path.parent != self.directory:
            with report_disk_errors(path.parent):
                sync_directory(path.parent)
        self.side_files[name] = (size, digest.hexdigest())

    @property
    def tensor_digests(self) -> dict[str, str]:
        """The BLAKE3 of each tensor's bytes, by name. Call `finish_shards` first."""
        return {name: self._journal.tensors[name] for name in self.shards.layout.locations}

    @property
    def tensors_digest(self) -> str:
        """One digest of all tensors, whatever the shard size. Call `finish_shards` first."""
        locations = self.shards.layout.locations
        return tensors_digest(
            {name: (locations[name].info, digest) for name, digest in self.tensor_digests.items()}
        )

    def commit(self, *, overwrite: bool) -> None:
        """Rename the directory to the output in one step, or leave the output as it was.

        A replaced output moves into the workspace and is removed with it.
        """
        self._verify()
        output = self.workspace.output
        with report_disk_errors(output):
            sync_directory(self.directory)
            self._journal.commit(self.directory.stat().st_ino)
            fault_point("commit recorded")
            replaces = overwrite and output.exists()
            was_empty = output.exists() and not any(output.iterdir())
            if replaces:
                check_output(output, overwrite=True)  # somebody may have added files
                self.workspace.exchange()
            else:
                self._rename_to(output)
            fault_point("in place")
            try:
                sync_directory(output.absolute().parent)
            except BaseException:  # not durable: take it back
                if replaces:
                    self.workspace.undo_exchange()
                else:
                    output.rename(self.directory)
                    if was_empty:
                        output.mkdir()
                raise
        fault_point("committed")

    def _verify(self) -> None:
        """Read every header back, strictly, and compare it with the layout."""
        expected = {name: location.info for name, location in self.shards.layout.locations.items()}
        try:
            files = {shard.file for shard in self.shards.layout.shards}
            is_model = len(files) > 1 or SINGLE in files
            path = self.directory if is_model else self.directory / min(files)
            infos = CheckpointSource(path).infos
        except CheckpointError as error:
            raise DiskError(f"the written model does not read back: {error.message}") from error
        if list(infos.items()) != list(expected.items()):
            raise DiskError(f"{self.directory} does not read back as it was written")
        fault_point("verified")

    def _rename_to(self, output: Path) -> None:
        try:
            self.directory.rename(output)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            raise output_exists(output) from error

    def close(self, error: BaseException | None) -> None:
        """Stop the background work, and remove everything that cannot be resumed.

        An error from outside the run keeps the finished work. Another `FusionError` means that the
        recipe or its inputs have to change, and nothing is kept. Any other exception is a bug: the
        tensors may be wrong, and only the algorithm's state is kept.
        """
        is_from_outside = (
            not isinstance(error, Exception)  # an interrupt
            or isinstance(error, _FROM_OUTSIDE)
            or is_out_of_memory(error)
        )
        has_plan = error is not None and self.workspace.plan.exists()
        if self._recorder is not None:
            self._recorder.close(record=has_plan and is_from_outside)
        self.shards, self._recorder = Shards(Layout([]), {}), None
        self._journal.close()
        with suppress(DiskError, OSError):  # `fuse clean` can remove what this cannot
            is_bug = not is_from_outside and not isinstance(error, FusionError)
            if has_plan and is_bug:
                self.workspace.remove_tensors()
            is_useful = is_from_outside or is_bug
            if error is not None and is_useful and self.workspace.can_be_resumed:
                error.add_note("Finished work is kept: run the same command with --resume.")
            else:
                self.workspace.remove()


def _chunks_of(content: bytes | Path | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Path):
        with report_unreadable(content), os.fdopen(open_named(content), "rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    else:
        yield from content
