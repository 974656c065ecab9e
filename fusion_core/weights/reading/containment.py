"""Which files belong to a model: those in its directory, and the hub blobs that it links to.

Checkpoints come from anywhere, and a link in one may point anywhere: to a private file that would
be copied into an output, or to a device that never ends. Every reader of weights or side files
opens them through this module. It knows paths, not contents.
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

# A pipe is refused after it was opened, so opening must not wait for a writer.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK
_HUB_REPOSITORIES = ("models--", "datasets--", "spaces--")


def open_member(file: Path) -> int:
    """Open a file of the model directory that contains it, and return a descriptor.

    Raises `CheckpointError` naming the file if it is missing, a link out of the directory, or not a
    regular file.
    """
    return open_named(resolve_member(file))


def open_named(file: Path) -> int:
    """Open a regular file that the user named, following links anywhere."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # before opening, which wakes some devices
            raise CheckpointError(f"{file} is not a regular file")
        descriptor = os.open(file, _FLAGS)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
    except (OSError, ValueError) as error:
        raise unreadable_error(file, error) from error
    os.close(descriptor)
    raise CheckpointError(f"{file} is not a regular file")


def read_whole(file: Path, largest: int, *, hint: str | None = None) -> bytes:
    """Read a file of a model directory; refuse one of more than `largest` bytes unread."""
    with report_unreadable(file), os.fdopen(open_member(file), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > largest:
            raise CheckpointError(
                f"{file} is too large: expected at most {largest:,} bytes, got {size:,}", hint=hint
            )
        return stream.read(largest)


def resolve_member(file: Path) -> Path:
    """Return the real path of a file of a model directory.

    The path is under the directory or, if the directory is a snapshot in a hub cache, among the
    blobs of its repository or those that repositories share. Raises `CheckpointError` otherwise.
    """
    try:
        root = Path(os.path.realpath(file.parent, strict=True))
        real = Path(os.path.realpath(file, strict=True))
    except (OSError, ValueError) as error:
        raise unreadable_error(file, error) from error
    if any(real.is_relative_to(allowed) for allowed in (root, *_blob_directories(root))):
        return real
    raise CheckpointError(
        f"{file} is a link that leads out of its directory, to {real}",
        hint="Name the directory that holds the files themselves, or copy them.",
    )


@contextmanager
def report_unreadable(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `CheckpointError` about `path`.

    `Path.exists` and similar methods raise one too, for a closed directory or a long name.
    """
    try:
        yield
    except OSError as error:
        raise unreadable_error(path, error) from error


def unreadable_error(path: Path, error: OSError | ValueError) -> CheckpointError:
    """Return the `CheckpointError` for a file that the system cannot open or read."""
    code = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error)
    if code == errno.ENOENT and path.is_symlink():
        reason = "it is a link to nothing"
    is_limit = code in {errno.EMFILE, errno.ENFILE}
    hint = "Raise the limit on open files: ulimit -n 65536." if is_limit else None
    return CheckpointError(f"{path} cannot be read: {reason}", hint=hint)


def _blob_directories(root: Path) -> tuple[Path, ...]:
    """Return where a snapshot's links lead: REPOSITORY/blobs, and from there CACHE/blobs."""
    for snapshots in (root, *root.parents):
        repository = snapshots.parent
        if snapshots.name == "snapshots" and repository.name.startswith(_HUB_REPOSITORIES):
            return repository / "blobs", repository.parent / "blobs"
    return ()
