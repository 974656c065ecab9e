"""Write a model directory that is either complete or not there.

Everything is written into a staging directory beside the output. Shards are laid out beforehand
(every size is known from the plan, so a full disk is found before any work), tensors land at fixed
offsets in any order, and a shard's header comes last: until then its first bytes are zero and no
reader accepts it. Committing syncs files and directories and renames the staging directory.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.errors import BrokenPluginError, CheckpointError, DiskError, OutputError
from fusion_core.weights.checkpoint import INDEX, SINGLE
from fusion_core.weights.format import build_header
from fusion_core.weights.source import memory_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from fusion_core.weights.format import TensorInfo

_METADATA = {"format": "pt"}


@dataclass
class Shard:
    """One file of the output, and where its tensors lie."""

    file: str
    infos: list[TensorInfo]
    header: bytes = b""
    size: int = 0
    descriptor: int = -1
    offsets: dict[str, int] = field(default_factory=dict)

    def lay_out(self, directory: Path) -> None:
        """Create the file at its full size, its first bytes zero."""
        self.header, data = build_header(self.infos, _METADATA)
        self.size = len(self.header) + data
        offset = len(self.header)
        for info in self.infos:
            self.offsets[info.name] = offset
            offset += info.nbytes
        self.descriptor = os.open(directory / self.file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.descriptor, 0, self.size)
        else:  # macOS, Windows: a sparse file; a full disk is found later
            os.ftruncate(self.descriptor, self.size)

    def finish(self) -> None:
        """Make the data durable, then the header that declares it complete."""
        os.fsync(self.descriptor)
        _write_at(self.descriptor, memoryview(self.header), 0)
        os.fsync(self.descriptor)
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Staging:
    """A model directory in the making; `staged` opens one."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.directory = output.parent / f".{output.name}.fuse-{uuid.uuid4().hex[:12]}"
        self.shards: list[Shard] = []
        self._homes: dict[str, Shard] = {}
        self._made: list[Path] = []

    def create(self) -> None:
        """Make the staging directory, and the output's parents where they are missing."""
        parent = self.output.absolute().parent
        self._made = [each for each in (parent, *parent.parents) if not each.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir()

    def lay_out(self, infos: Sequence[TensorInfo], *, shard_size: int) -> None:
        """Reserve the space of every tensor, in files of at most `shard_size` bytes."""
        groups = _grouped(infos, shard_size)
        for number, group in enumerate(groups, 1):
            name = SINGLE if len(groups) == 1 else _shard_name(number, len(groups))
            shard = Shard(name, group)
            self.shards.append(shard)
            self._homes |= {info.name: shard for info in group}
            shard.lay_out(self.directory)

    def write(self, info: TensorInfo, start: int, values: torch.Tensor) -> None:
        """Write elements of a tensor from `start` on; safe from several threads."""
        shard = self._homes[info.name]
        values = values.contiguous()
        offset = shard.offsets[info.name] + start * info.dtype.itemsize
        _write_at(shard.descriptor, memory_of(values), offset)

    def add(self, name: str, content: bytes | Path) -> None:
        """Add a side file: its bytes, or a file to copy.

        Raises `BrokenPluginError` for a name that leads elsewhere or is taken: names come from
        algorithms and pools.
        """
        path = self.directory / name
        if path.parent != self.directory or path.name != name or path.exists():
            raise BrokenPluginError(f"{name!r} cannot be the name of a side file, or is taken")
        write_durably(path, _content_of(content) if isinstance(content, Path) else content)

    def finish_shards(self) -> None:
        """Complete every shard, and the index if there are several."""
        for shard in self.shards:
            shard.finish()
        if len(self.shards) > 1:
            self.add(INDEX, _index(self.shards))

    def commit(self, *, overwrite: bool) -> None:
        """Put the directory in its place in one step, or leave what is there as it was.

        What it replaces is then the staging directory's content, and goes with that.
        """
        sync_directory(self.directory)
        empty = self.output.exists() and not any(self.output.iterdir())
        replaces = overwrite and self.output.exists()
        if replaces:
            _exchange(self.directory, self.output)
        else:
            self._move_in()
        try:
            sync_directory(self.output.absolute().parent)
            for made in self._made:
                sync_directory(made.parent)
        except BaseException:
            if replaces:
                _exchange(self.directory, self.output)
            else:
                self.output.rename(self.directory)
                if empty:
                    self.output.mkdir()
            raise

    def _move_in(self) -> None:
        try:
            self.directory.rename(self.output)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            raise _present(self.output) from error

    def discard(self) -> None:
        """Remove everything written so far, and the parents made for it if nothing else came in."""
        for shard in self.shards:
            shard.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        for parent in self._made:
            with suppress(OSError):  # never made after all, or in use by now
                parent.rmdir()


@contextmanager
def staged(output: Path, *, overwrite: bool = False) -> Iterator[Staging]:
    """Open a staging directory for `output`; it is gone afterwards unless it was committed.

    Raises `OutputError` if the output is present and not to be overwritten, `DiskError` naming the
    path where the file system refuses.
    """
    staging = Staging(output)
    try:
        check_output(output, overwrite=overwrite)
        staging.create()
        yield staging
    except OSError as error:
        raise disk_error(error, output) from error
    finally:
        staging.discard()


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if a run must not write there."""
    if output.is_symlink():
        raise OutputError(f"output {output} is a symbolic link", hint="Name a directory itself.")
    if output.exists() and not output.is_dir():
        raise OutputError(f"output {output} is a file", hint="Name another directory with -o.")
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise _present(output)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file in one step: readers see the old one or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(error, path) from error
        raise


def _exchange(one: Path, other: Path) -> None:
    """Let two directories change places: at once if the system can, else by a third name."""
    if _exchanged_at_once(one, other):
        return
    aside = one.with_name(f"{one.name}.old")
    try:
        other.rename(aside)
        one.rename(other)
        aside.rename(one)
    except BaseException:
        if aside.exists():  # interrupted between the first rename and the last
            if not one.exists():
                other.rename(one)
            aside.rename(other)
        raise


def _exchanged_at_once(one: Path, other: Path) -> bool:
    """Exchange two directories by Linux's renameat2; False where it or the file system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here = -100  # AT_FDCWD: relative to the working directory
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), 2) == 0:  # RENAME_EXCHANGE
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code), str(other))


def sync_directory(directory: Path) -> None:
    """Make a directory's entries durable, where directories can be opened (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: OSError, path: Path) -> DiskError:
    """Turn what the file system said into an error with a remedy."""
    reason = error.strerror or str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        free = shutil.disk_usage(_existing(path)).free
        hint = f"{free:,} bytes are free there; make room, or write elsewhere with -o."
    else:
        hint = "Check the path and its permissions, or write elsewhere with -o."
    return DiskError(f"{path} cannot be written: {reason}", hint=hint)


def _content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _present(output: Path) -> OutputError:
    return OutputError(
        f"output {output} is already there",
        hint="Choose another with -o, or replace it with --overwrite.",
    )


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _grouped(infos: Sequence[TensorInfo], shard_size: int) -> list[list[TensorInfo]]:
    groups: list[list[TensorInfo]] = [[]]
    room = shard_size
    for info in infos:
        if info.nbytes > room and groups[-1]:
            groups.append([])
            room = shard_size
        groups[-1].append(info)
        room -= info.nbytes
    return groups


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _index(shards: Sequence[Shard]) -> bytes:
    weight_map: Mapping[str, str] = {info.name: each.file for each in shards for info in each.infos}
    total = sum(info.nbytes for each in shards for info in each.infos)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2).encode() + b"\n"
