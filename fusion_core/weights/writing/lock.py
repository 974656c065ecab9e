"""The lock of an output: only one run may write an output directory.

The lock is a `flock` on the file `.<name>.fuse-lock` next to the output. The kernel frees it when
its holder dies, so a lock file that a dead run left behind locks nothing. On file systems without
`flock`, the existence of `.<name>.fuse-owner` is the lock. A user must remove one that a dead run
left behind, because there is no safe way to tell that the run is dead.

The lock belongs to the output and not to a staging directory: two runs of different recipes must
not write one output either.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError, OutputError
from fusion_core.weights.reading.untrusted_json import parse_json
from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing.disk import report_disk_errors
from fusion_core.weights.writing.ownership import is_held, open_own_file, read_own_file, take_flock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK, OWNER = ".fuse-lock", ".fuse-owner"
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
#: Seconds to wait once for a lock that is held. `is_locked` holds it for a moment, and a run writes
#: its owner record just after it takes the lock.
_PATIENCE = 0.05
_LARGEST_RECORD = 4096


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Keep every other run from writing `output`, whose parent must exist.

    Raises `OutputError` naming the process and host of the run that holds the lock.
    """
    with report_disk_errors(output):
        path, descriptor = _lock_with_flock(output) or _lock_with_owner_file(output)
    try:
        with report_disk_errors(output):
            _write_owner(descriptor)
        fault_point("locked")
        yield
    finally:
        # Removed while it is locked: a run that opened it meanwhile sees that and opens a new one.
        # A lock file that cannot be removed locks nothing, so an earlier error takes precedence.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)
        fault_point("unlocked")


def locked_outputs(directory: Path) -> Iterator[Path]:
    """Yield the outputs in a directory that have a lock file, held or not."""
    for path in directory.iterdir():
        name, dot, suffix = path.name.rpartition(".")
        if dot + suffix in {LOCK, OWNER} and len(name) > 1 and name.startswith("."):
            yield path.with_name(name[1:])


def is_locked(output: Path) -> bool:
    """Tell whether a run is writing `output`, without writing anything."""
    return is_held(lock_of(output)) or os.path.lexists(_owner_of(output))


def lock_of(output: Path) -> Path:
    """Return the lock file of an output."""
    return output.with_name(f".{output.name}{LOCK}")


def _owner_of(output: Path) -> Path:
    return output.with_name(f".{output.name}{OWNER}")


def _lock_with_flock(output: Path) -> tuple[Path, int] | None:
    """Return the lock file and its descriptor, or None on a file system without `flock`."""
    path = lock_of(output)
    failures = 0
    while failures < 2:  # noqa: PLR2004 - `is_locked` may have held it at the first attempt
        descriptor = open_own_file(path, os.O_RDWR | os.O_CREAT)
        try:
            is_taken = take_flock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_FLOCK:
                raise
            path.unlink(missing_ok=True)  # no run can have locked it
            return None
        if is_taken and _is_open_at(descriptor, path):
            return path, descriptor
        os.close(descriptor)
        if not is_taken:
            failures += 1
            time.sleep(_PATIENCE)
    raise _conflict(output, path)


def _lock_with_owner_file(output: Path) -> tuple[Path, int]:
    path = _owner_of(output)
    try:
        return path, open_own_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except FileExistsError as error:
        time.sleep(_PATIENCE)
        raise _conflict(output, path, remedy=f" If it has ended, remove {path}.") from error


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Tell whether a path still names the open file. Its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int) -> None:
    record = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, record.encode(), 0)


def _conflict(output: Path, path: Path, *, remedy: str = "") -> OutputError:
    owner = "another run"  # it has just ended, or has not written its record yet
    with suppress(OSError, CheckpointError):
        match parse_json(read_own_file(path, _LARGEST_RECORD) or b"", path=str(path)):
            case {"pid": int(pid), "host": str(host)}:
                owner = f"process {pid} on {host}"
    return OutputError(
        f"output {output} is being written by {owner}",
        hint=f"Wait for it, or write elsewhere with -o.{remedy}",
    )
