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

from fusion_core.errors import OutputError
from fusion_core.weights.disk import writing
from fusion_core.weights.fault import fault_point

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK, OWNER = ".fuse-lock", ".fuse-owner"
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
#: For so long, in seconds, a holder may not have written its name yet.
_PATIENCE = 0.05


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


def _by_kernel(output: Path) -> tuple[Path, int] | None:
    """Lock by `flock`; None where there is none."""
    path = output.with_name(f".{output.name}{LOCK}")
    while fcntl is not None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return path, descriptor
            os.close(descriptor)  # of a run that has just ended
        except OSError as error:
            os.close(descriptor)
            if error.errno in {errno.EAGAIN, errno.EACCES}:
                raise _taken(output, path) from error
            if error.errno not in _NO_FLOCK:
                raise
            path.unlink(missing_ok=True)  # nobody can have locked it
            return None
    return None


def _by_existence(output: Path) -> tuple[Path, int]:
    path = output.with_name(f".{output.name}{OWNER}")
    try:
        return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError as error:
        raise _taken(output, path, remedy=f" If it is no more, remove {path}.") from error


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    name = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, name.encode(), 0)


def _taken(output: Path, path: Path, *, remedy: str = "") -> OutputError:
    time.sleep(_PATIENCE)
    try:
        holder = json.loads(path.read_bytes())
        who = f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError):  # it has just ended, or has not signed yet
        who = "another run"
    return OutputError(
        f"output {output} is being written by {who}",
        hint=f"Wait for it, or write elsewhere with -o.{remedy}",
    )
