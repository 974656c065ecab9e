"""Where values came from: files here or on the hub, and whether the files are still the same.

An `Origin` belongs to a `WeightSource`, which itself knows names, shapes and ranges only. Code that
records a run, downloads ahead or looks for changes uses the origin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fusion_core.errors import IntegrityError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from fusion_core.hub import FileRequest

#: A file's device, inode, size, and the times when its content and its entry changed, in ns.
Stamp = tuple[int, ...]
#: The first numbers of a stamp, device and inode, differ between machines.
_MACHINE_NUMBERS = 2
_CHANGE_TIME = 4
DIFFERS = "it differs from the file that was opened"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the values of a source came from. A field that does not apply is empty."""

    #: the identity of each file as JSON data, by its name in the model's directory
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: the identity of each model that the values are made of as JSON data, by name
    inputs: Mapping[str, Any] = field(default_factory=dict)
    #: the files on the hub that reading needs, including those in the cache
    wanted: FileRequest | None = None
    #: the stamps of files here at the time they were opened
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)
    #: how the files encode the values, if a format decodes them: `fp8, 14 of 21 tensors`
    decoded_from: str = ""

    def check_unchanged(self) -> None:
        """Raise `IntegrityError` naming a file that changed since it was opened."""
        for path, stamp in self.stamps.items():
            try:
                current = stamp_of(path.stat())
            except OSError as error:
                raise changed_error(path, error.strerror or "it is missing") from error
            if current != stamp:
                raise changed_error(path, DIFFERS)

    @property
    def changed_ns(self) -> list[int]:
        """When each file here, or its entry, last changed, in ns."""
        return [stamp[_CHANGE_TIME] for stamp in self.stamps.values()]


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the numbers that show whether a file was changed or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def may_be_same_file(one: Stamp, other: Stamp) -> bool:
    """Tell whether two stamps, from one machine or two, may be of one file."""
    return one[_MACHINE_NUMBERS:] == other[_MACHINE_NUMBERS:]


def changed_error(path: Path, reason: str) -> IntegrityError:
    """Return the error for a file that changed."""
    return IntegrityError(
        f"{path} changed while it was being read: {reason}",
        hint="Run again when nothing writes to it.",
    )
