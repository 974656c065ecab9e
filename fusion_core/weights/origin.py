"""Where values came from: files here or on the hub, and whether they are still the same.

Stands next to the values. A `WeightSource` knows names, shapes and ranges; whoever records a run,
downloads ahead or looks for changes asks for its `Origin`.
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

    from fusion_core.hub import Wanted

#: A file's device, inode, size, and the times when its content and its entry were changed, in ns.
Stamp = tuple[int, ...]
#: How many of a stamp's numbers another machine sees differently: device and inode.
_OF_ONE_MACHINE = 2
_CHANGE_TIME = 4
DIFFERS = "it is not as it was when the run began"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the values of a source came from; every field is empty where it does not apply."""

    #: what identifies each file, by its name in the model's directory: JSON data
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: what identifies the models that the values are made of, by name: JSON data
    inputs: Mapping[str, Any] = field(default_factory=dict)
    #: the files on the hub that reading needs, those in the cache too
    wanted: Wanted | None = None
    #: the files here, as they were when they were opened
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)

    def check_unchanged(self) -> None:
        """Raise `IntegrityError` naming a file that is not as it was when it was opened."""
        for path, stamp in self.stamps.items():
            try:
                now = stamp_of(path.stat())
            except OSError as error:
                raise changed(path, error.strerror or "it is gone") from error
            if now != stamp:
                raise changed(path, DIFFERS)

    @property
    def changed_ns(self) -> list[int]:
        """When each file here last changed in any way, in ns."""
        return [stamp[_CHANGE_TIME] for stamp in self.stamps.values()]


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what tells that a file was changed or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_same_elsewhere(one: Stamp, other: Stamp) -> bool:
    """Tell whether two machines may have seen one file."""
    return one[_OF_ONE_MACHINE:] == other[_OF_ONE_MACHINE:]


def changed(path: Path, how: str) -> IntegrityError:
    """Return the error for a file that is not as it was."""
    return IntegrityError(
        f"{path} changed while it was being read: {how}",
        hint="Run again when nothing writes to it.",
    )
