"""Which files belong to a model: those in its directory, and the hub blobs it links to.

Checkpoints come from anywhere, and a link in one may lead anywhere: to a private file that would be
copied into an output, to a device that never ends. Whatever opens weights or files beside them asks
here. It knows paths, not what is in the files.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A pipe is refused after it was opened, so opening must not wait for somebody to write into it.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK
_HUB_REPOSITORIES = ("models--", "datasets--", "spaces--")


def open_member(file: Path) -> int:
    """Open a file of the model directory that it lies in; returns a descriptor to read from.

    Raises `CheckpointError` naming the file if it is missing, a link out of the directory, or
    anything but a regular file.
    """
    return open_named(member(file))


def open_named(file: Path) -> int:
    """Open a file that the user named: links are followed wherever they lead."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # before it is opened: that wakes some devices
            raise CheckpointError(f"{file} is not a regular file")
        descriptor = os.open(file, _FLAGS)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from error
    os.close(descriptor)
    raise CheckpointError(f"{file} is not a regular file")


def read_whole(file: Path, largest: int, *, hint: str | None = None) -> bytes:
    """Read a file of a model directory; one of more than `largest` bytes is refused unread."""
    with os.fdopen(open_member(file), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > largest:
            raise CheckpointError(
                f"{file} is too large: expected at most {largest:,} bytes, got {size:,}", hint=hint
            )
        return stream.read(largest)


def size_of(file: Path) -> int:
    """Return how many bytes a file of a model directory has."""
    with os.fdopen(open_member(file), "rb") as stream:
        return os.fstat(stream.fileno()).st_size


def member(file: Path) -> Path:
    """Return where a file of a model directory really lies.

    That is under the directory or, if the directory is a snapshot in a hub cache, among the blobs
    of its repository or those that repositories share. Raises `CheckpointError` otherwise.
    """
    try:
        root = Path(os.path.realpath(file.parent, strict=True))
        real = Path(os.path.realpath(file, strict=True))
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from error
    if any(real.is_relative_to(home) for home in (root, *_blob_stores(root))):
        return real
    raise CheckpointError(
        f"{file} is a link that leads out of its directory, to {real}",
        hint="Name the directory that holds the files themselves, or copy them.",
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Report what the file system refuses as a `CheckpointError` about `path`.

    `Path.exists` and its like refuse, too: below a directory that is closed to us, or a long name.
    """
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    """Turn what the system said about a file into an error that names it."""
    reason = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) == errno.ENOENT and path.is_symlink():
        reason = "it is a link to nothing"
    too_many = getattr(error, "errno", None) in {errno.EMFILE, errno.ENFILE}
    hint = "Allow more files to be open at once: ulimit -n 65536." if too_many else None
    return CheckpointError(f"{path} cannot be read: {reason}", hint=hint)


def _blob_stores(root: Path) -> tuple[Path, ...]:
    """Return where a snapshot's links lead: REPOSITORY/blobs, and CACHE/blobs behind that."""
    for snapshots in (root, *root.parents):
        repository = snapshots.parent
        if snapshots.name == "snapshots" and repository.name.startswith(_HUB_REPOSITORIES):
            return repository / "blobs", repository.parent / "blobs"
    return ()
