"""One run an output: who comes second learns at once who was first.

A file `.<name>.fuse-lock` beside the output is locked with `flock`, which the kernel frees however
its holder dies; so a file left behind by a dead run locks nothing. Where there is no `flock`, the
existence of `.<name>.fuse-owner` is the lock, and one left behind has to be removed by hand: there
is no safe way to tell that its run is dead.

One lock an output, and not one in each staging directory: two runs of different recipes must not
write one output either.
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
from fusion_core.weights.reading.untrusted import parse_json
from fusion_core.weights.writing._fault import fault_point
from fusion_core.weights.writing.disk import writing
from fusion_core.weights.writing.ours import is_held, open_ours, read_ours, take_flock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK, OWNER = ".fuse-lock", ".fuse-owner"
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
#: For so long, in seconds, a holder may not have written its name yet, and one that only looks
#: whether a lock is held may hold it.
_PATIENCE = 0.05
_LARGEST_NAME = 4096


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep every other run from writing `output`.

    Raises `OutputError` naming process and host of the run that does. The output's parent must be
    there.
    """
    with writing(output):
        path, descriptor = _by_kernel(output) or _by_existence(output)
    try:
        with writing(output):
            _sign(descriptor)
        fault_point("locked")
        yield
    finally:
        with suppress(OSError):  # a file left behind by flock locks nothing, and what failed stands
            path.unlink(missing_ok=True)  # while it is locked: who waits finds it gone, looks again
        os.close(descriptor)
        fault_point("unlocked")


def locked_outputs(directory: Path) -> Iterator[Path]:
    """Yield the outputs in a directory that have a lock file, whether it is held or not."""
    for path in directory.iterdir():
        name, dot, suffix = path.name.rpartition(".")
        if dot + suffix in {LOCK, OWNER} and len(name) > 1 and name.startswith("."):
            yield path.with_name(name[1:])


def is_locked(output: Path) -> bool:
    """Tell whether a run is writing `output`; nothing is written to find out."""
    return is_held(lock_of(output)) or os.path.lexists(output.with_name(f".{output.name}{OWNER}"))


def lock_of(output: Path) -> Path:
    """Return the file by which `output` is locked."""
    return output.with_name(f".{output.name}{LOCK}")


def _by_kernel(output: Path) -> tuple[Path, int] | None:
    """Lock by `flock`; None where there is none."""
    path, busy = lock_of(output), 0
    while busy < 2:  # noqa: PLR2004 - once more, after a moment: somebody may only have looked
        descriptor = open_ours(path, os.O_RDWR | os.O_CREAT)
        try:
            is_ours = take_flock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_FLOCK:
                raise
            path.unlink(missing_ok=True)  # nobody can have locked it
            return None
        if is_ours and _is_at(descriptor, path):
            return path, descriptor
        os.close(descriptor)  # another run's, or that of one that has just ended
        if not is_ours:
            busy += 1
            time.sleep(_PATIENCE)
    raise _taken(output, path)


def _by_existence(output: Path) -> tuple[Path, int]:
    path = output.with_name(f".{output.name}{OWNER}")
    try:
        return path, open_ours(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except FileExistsError as error:
        time.sleep(_PATIENCE)
        raise _taken(output, path, remedy=f" If it has ended, remove {path}.") from error


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    name = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, name.encode(), 0)


def _taken(output: Path, path: Path, *, remedy: str = "") -> OutputError:
    return OutputError(
        f"output {output} is being written by {_holder(path)}",
        hint=f"Wait for it, or write elsewhere with -o.{remedy}",
    )


def _holder(path: Path) -> str:
    """Name who has signed a lock, unless it has just ended, or has not signed yet."""
    with suppress(OSError, CheckpointError):
        match parse_json(read_ours(path, _LARGEST_NAME) or b"", path=str(path)):
            case {"pid": int(pid), "host": str(host)}:
                return f"process {pid} on {host}"
    return "another run"
