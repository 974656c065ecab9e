"""Files that this program makes in directories that others can fill: opened as what they are.

A link may have been planted where such a file belongs, to have us overwrite what it leads to, or a
pipe, to have us wait. Knows nothing of what is in the files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_BUSY = {errno.EAGAIN, errno.EACCES}
#: What `os.open` says of a link, a socket and a directory, when it is not to follow or to wait.
_ODD = {errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR}
_AS_IT_IS = os.O_NOFOLLOW | os.O_NONBLOCK
_READ_OR_WRITE = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class NotOursError(OSError):
    """Where a file of ours belongs lies something that may have been planted there."""


def open_ours(path: Path, flags: int) -> int:
    """Open a file that this program makes, in a directory that others can fill.

    A link is not followed, and a pipe not waited for. Raises `NotOursError` for both, for
    anything else but a regular file and, to write, for a file that has other names.
    """
    try:
        descriptor = os.open(path, flags | _AS_IT_IS, 0o666)
    except OSError as error:
        if error.errno in _ODD:
            raise _not_ours(path) from error
        raise
    status = os.fstat(descriptor)
    is_read = flags & _READ_OR_WRITE == os.O_RDONLY
    if stat.S_ISREG(status.st_mode) and (is_read or status.st_nlink <= 1):
        return descriptor
    os.close(descriptor)
    raise _not_ours(path)


def _not_ours(path: Path) -> NotOursError:
    return NotOursError(errno.EPERM, f"{path.name} is not a regular file, or it has other names")


def read_ours(path: Path, limit: int) -> bytes | None:
    """Read at most `limit` bytes of a file that this program made; None if there is no such file.

    Raises `OSError`.
    """
    try:
        descriptor = open_ours(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError, NotOursError):
        return None
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(limit)


def take_flock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file for as long as it is open; False if another holds it.

    Raises `OSError` where files cannot be locked.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def is_held(path: Path) -> bool:
    """Tell whether somebody has locked a file of ours, or may have: nothing is written."""
    try:
        descriptor = open_ours(path, os.O_RDONLY)
    except (FileNotFoundError, NotOursError):
        return False
    except OSError:  # another user's
        return True
    try:
        return not take_flock(descriptor, shared=True)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def is_single(path: Path) -> bool:
    """Tell whether a regular file of one name lies there, and no link."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def is_directory(path: Path) -> bool:
    """Tell whether a directory lies there, and not a link to one."""
    return path.is_dir() and not path.is_symlink()
