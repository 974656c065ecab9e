"""This program's files in directories that other users can write to.

Somebody may plant a link in place of such a file, so that the program overwrites the link's target,
or a pipe, so that the program waits for ever. This module opens files without following links or
waiting. It does not interpret their content.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LOCKED = {errno.EAGAIN, errno.EACCES}
#: The errors of `os.open` for a link, a socket and a directory under `_SAFELY`.
_NOT_A_FILE = {errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR}
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK
_ACCESS_MODE = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class ForeignFileError(OSError):
    """Somebody may have planted what lies in place of one of this program's files."""


def open_own_file(path: Path, flags: int) -> int:
    """Open one of this program's files, without following links or waiting for pipes.

    Raises `ForeignFileError` for anything but a regular file and, to write, for a file with other
    hard links.
    """
    try:
        descriptor = os.open(path, flags | _SAFELY, 0o666)
    except OSError as error:
        if error.errno in _NOT_A_FILE:
            raise _foreign(path) from error
        raise
    status = os.fstat(descriptor)
    is_reading = flags & _ACCESS_MODE == os.O_RDONLY
    if stat.S_ISREG(status.st_mode) and (is_reading or status.st_nlink <= 1):
        return descriptor
    os.close(descriptor)
    raise _foreign(path)


def _foreign(path: Path) -> ForeignFileError:
    reason = f"{path.name} is not a regular file, or has other hard links"
    return ForeignFileError(errno.EPERM, reason)


def read_own_file(path: Path, limit: int) -> bytes | None:
    """Read at most `limit` bytes of one of this program's files, or return None without one.

    Raises `OSError`.
    """
    try:
        descriptor = open_own_file(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError, ForeignFileError):
        return None
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(limit)


def take_flock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file until it is closed. Return False if another process holds the lock.

    Raises `OSError` where files cannot be locked.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _LOCKED:
            return False
        raise
    return True


def is_held(path: Path) -> bool:
    """Tell whether a process holds a file's lock, or may hold it, without writing anything."""
    try:
        descriptor = open_own_file(path, os.O_RDONLY)
    except (FileNotFoundError, ForeignFileError):
        return False
    except OSError:  # another user's file
        return True
    try:
        return not take_flock(descriptor, shared=True)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def is_single_file(path: Path) -> bool:
    """Tell whether a path is a regular file with one hard link, and no symbolic link."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def is_directory(path: Path) -> bool:
    """Tell whether a path is a directory, and no symbolic link to one."""
    return path.is_dir() and not path.is_symlink()
