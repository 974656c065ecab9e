"""File system calls of the writer, with fallbacks where a system lacks one.

This module handles paths, bytes and descriptors. It knows nothing of tensors, staging directories
or runs. Only failures inside `writing` become a `DiskError`. An `OSError` of a plugin's own code
stays what it is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fusion_core.errors import DiskError
from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing.ownership import (
    ForeignFileError,
    is_single_file,
    open_own_file,
    take_flock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_TEMPORARY = re.compile(r"\.(?P<target>.+)\.fuse-[0-9a-f]{8}", re.DOTALL)


class DataFile:
    """An open file that several threads read and write. A pickle of it opens the file again.

    The descriptor is closed with the last reference. A thread inside a system call holds one, so
    the descriptor's number cannot come to mean another file in the meantime.
    """

    def __init__(self, path: Path, *, flags: int = os.O_CREAT) -> None:
        self.path = path
        with report_disk_errors(path):
            self.descriptor = open_own_file(path, os.O_RDWR | flags)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data` at an offset."""
        with report_disk_errors(self.path):
            while data:
                count = os.pwrite(self.descriptor, data, offset)
                data, offset = data[count:], offset + count

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes at an offset."""
        with report_disk_errors(self.path):
            while buffer:
                count = os.preadv(self.descriptor, [buffer], offset)
                if not count:
                    raise OSError(errno.EIO, "the file has been truncated")
                buffer, offset = buffer[count:], offset + count

    def chunks(self, offset: int, size: int, buffer: memoryview) -> Iterator[memoryview]:
        """Read `size` bytes through a buffer. Each chunk is valid until the next is requested."""
        while size:
            chunk = buffer[:size]
            self.read(chunk, offset)
            yield chunk
            offset, size = offset + len(chunk), size - len(chunk)

    def sync(self) -> None:
        """Make the written data durable."""
        with report_disk_errors(self.path):
            getattr(os, "fdatasync", os.fsync)(self.descriptor)

    def __getstate__(self) -> Path:
        return self.path.absolute()

    def __setstate__(self, path: Path) -> None:
        self.__init__(path, flags=0)  # type: ignore[misc]

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "descriptor"):
            close(self.descriptor)  # bound early: `os` may be gone when a worker process ends


def allocate(descriptor: int, size: int, *, fits: bool) -> None:
    """Set an open file's size, and reserve its space where the file system supports that.

    `fits` says whether the space is free, for file systems without reservation. Raises `OSError`.
    """
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
            raise
        if not fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        os.ftruncate(descriptor, size)


@contextmanager
def report_disk_errors(
    path: Path, *, needed: int | None = None, free: int | None = None
) -> Iterator[None]:
    """Turn an `OSError` into a `DiskError` about `path`.

    `needed` and `free` are bytes to name in the error about a full disk.
    """
    try:
        yield
    except OSError as error:
        hint = "Check the path and its permissions, or write elsewhere with -o."
        if isinstance(error, ForeignFileError):
            hint = f"Inspect it in {path.absolute().parent}, and remove it."
        elif error.errno in _FULL:
            hint = f"{_shortage(path, needed, free)}; make room, or write elsewhere with -o."
        reason = error.strerror or str(error)
        raise DiskError(f"{path} cannot be written: {reason}", hint=hint) from error


def _shortage(path: Path, needed: int | None, free: int | None) -> str:
    """Describe what a full file system lacks: bytes, or inodes where it counts them."""
    status = os.statvfs(_nearest_existing(path))
    if status.f_files and not status.f_favail:
        return "The file system has no inode left for another file (see df -i)"
    free = free_bytes(path) if free is None else free
    available = f"{free:,} bytes are free there"
    return available if needed is None else f"{needed:,} bytes are needed, {available}"


def free_bytes(path: Path) -> int:
    """Return how many bytes can still be written at a path, which need not exist."""
    return shutil.disk_usage(_nearest_existing(path)).free


def _nearest_existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def write_new(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a new file. It is durable once its directory is synced."""
    with report_disk_errors(path), _create(path) as stream:
        _write_and_sync(stream, chunks)
    fault_point("side file written")


def write_durably(path: Path, data: bytes, *, parents: bool = False) -> None:
    """Write a file in one step: readers see the old or the new content, even after a crash.

    `parents` creates the file's directory first. Raises `DiskError` if the file system refuses.
    """
    if parents:
        with report_disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.fuse-{uuid.uuid4().hex[:8]}")
    try:
        with report_disk_errors(path), _create(temporary) as stream:
            with suppress(OSError):  # the lock only tells `fuse clean` that the file is in use
                take_flock(stream.fileno())
            _write_and_sync(stream, [data])
            fault_point("temporary file written")
            temporary.replace(path)
            sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):  # keep the first error
            temporary.unlink(missing_ok=True)
        raise


def _create(path: Path) -> BinaryIO:
    return os.fdopen(open_own_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")


def _write_and_sync(stream: BinaryIO, chunks: Iterable[bytes]) -> None:
    stream.writelines(chunks)
    stream.flush()
    os.fsync(stream.fileno())


def target_of(temporary: Path) -> Path | None:
    """Return the file that a temporary file of `write_durably` would have replaced.

    Return None for any other file.
    """
    match = _TEMPORARY.fullmatch(temporary.name)
    if match is None or not is_single_file(temporary):
        return None
    return temporary.with_name(match["target"])


def sync_directory(directory: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange_atomically(one: Path, other: Path) -> bool:
    """Exchange two directories with Linux's renameat2. Return False where that is unsupported."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(cwd, os.fsencode(one), cwd, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))
