"""What the writer asks of a file system, and what it does where a system lacks it.

Knows paths, bytes and descriptors; nothing of tensors, staging directories or runs. Only what is
done here, and in the modules that use `writing`, is ever reported as a `DiskError`: what a plugin
does with files is its own affair.
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
from fusion_core.weights.writing.ours import NotOursError, is_single, open_ours, take_flock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_TEMPORARY = re.compile(r"\.(?P<target>.+)\.fuse-[0-9a-f]{8}", re.DOTALL)


class DataFile:
    """An open file that threads read and write at once; a pickle of it opens it anew.

    Its descriptor is closed with the last reference: never while a thread is inside a call with
    it, when its number might come to mean another file.
    """

    def __init__(self, path: Path, *, flags: int = os.O_CREAT) -> None:
        self.path = path
        with writing(path):
            self.descriptor = open_ours(path, os.O_RDWR | flags)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data` at an offset."""
        with writing(self.path):
            while data:
                count = os.pwrite(self.descriptor, data, offset)
                data, offset = data[count:], offset + count

    def chunks(self, offset: int, size: int, buffer: memoryview) -> Iterator[memoryview]:
        """Read a span, a buffer at a time: each chunk holds until the next is asked for."""
        while size:
            with writing(self.path):
                count = os.preadv(self.descriptor, [buffer[:size]], offset)
                if not count:
                    raise OSError(errno.EIO, "the file has been cut short")
            yield buffer[:count]
            offset, size = offset + count, size - count

    def sync(self) -> None:
        """Make what was written durable."""
        with writing(self.path):
            getattr(os, "fdatasync", os.fsync)(self.descriptor)

    @property
    def allocated(self) -> int:
        """Bytes that the file already takes."""
        status = os.fstat(self.descriptor)
        return min(status.st_blocks * 512, status.st_size)

    def reserve(self, size: int, *, needed: int, free: int) -> None:
        """Give the file its size, and the space for it where the file system can promise that.

        `needed` and `free` bytes are what an error says.
        """
        with writing(self.path, needed=needed, free=free):
            allocate(self.descriptor, size, fits=needed <= free)

    def __getstate__(self) -> Path:
        return self.path.absolute()

    def __setstate__(self, path: Path) -> None:
        self.__init__(path, flags=0)  # type: ignore[misc]

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "descriptor"):
            close(self.descriptor)  # at the end of a worker that kept it, `os` is gone


def allocate(descriptor: int, size: int, *, fits: bool) -> None:
    """Give an open file its size, and its space where the file system can promise that.

    Where it cannot, `fits` says whether there is room. Raises `OSError`.
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
def writing(path: Path, *, needed: int | None = None, free: int | None = None) -> Iterator[None]:
    """Report what the file system refuses as a `DiskError` about `path`."""
    try:
        yield
    except OSError as error:
        raise _disk_error(error, path, needed, free) from error


def write_new(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file that nobody looks for yet; durable once its directory is synced."""
    with writing(path), _new(path) as stream:
        _write(stream, chunks)
    fault_point("side file written")


def write_durably(path: Path, data: bytes, *, parents: bool = False) -> None:
    """Write a file in one step: readers see the old one or the new one, also after a crash.

    `parents` makes its directory first. Raises `DiskError` for what the file system refuses.
    """
    if parents:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.fuse-{uuid.uuid4().hex[:8]}")
    try:
        with writing(path), _new(temporary) as stream:
            with suppress(OSError):  # it only tells `fuse clean` that somebody is at work
                take_flock(stream.fileno())
            _write(stream, [data])
            fault_point("temporary file written")
            temporary.replace(path)
            sync_directory(path.parent)
    except BaseException:
        with suppress(OSError):  # what failed stands
            temporary.unlink(missing_ok=True)
        raise


def _new(path: Path) -> BinaryIO:
    return os.fdopen(open_ours(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")


def _write(stream: BinaryIO, chunks: Iterable[bytes]) -> None:
    stream.writelines(chunks)
    stream.flush()
    os.fsync(stream.fileno())


def target_of(temporary: Path) -> Path | None:
    """Return the file that a temporary file of `write_durably` was to become; None for others."""
    found = _TEMPORARY.fullmatch(temporary.name)
    is_one = found is not None and is_single(temporary)
    return temporary.with_name(found["target"]) if found and is_one else None


def sync_directory(directory: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchanged_at_once(one: Path, other: Path) -> bool:
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
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


def free_bytes(path: Path) -> int:
    """Return how much may still be written there."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def _disk_error(error: OSError, path: Path, needed: int | None, free: int | None) -> DiskError:
    """Turn what the file system said into an error with a remedy."""
    reason = error.strerror or str(error)
    hint = "Check the path and its permissions, or write elsewhere with -o."
    if isinstance(error, NotOursError):
        hint = f"Look at what it is, in {path.absolute().parent}, and remove it."
    elif error.errno in _FULL:
        hint = f"{_shortage(path, needed, free)}; make room, or write elsewhere with -o."
    return DiskError(f"{path} cannot be written: {reason}", hint=hint)


def _shortage(path: Path, needed: int | None, free: int | None) -> str:
    """Say what a full file system lacks: bytes or, where it counts them, room for more files."""
    counted = os.statvfs(_existing(path))
    if counted.f_files and not counted.f_favail:
        return "The file system has no inode left (df -i): it holds as many files as it can"
    free = free_bytes(path) if free is None else free
    amounts = f"{free:,} bytes are free there"
    return amounts if needed is None else f"{needed:,} bytes are needed, {amounts}"
