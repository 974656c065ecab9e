"""What takes long to make of downloads, kept for the next run: decoded images, heads.

A directory of files a key, beside the hub's cache; complete or not there at all. Only what is made
of commits is kept, for nothing else has a name that never changes its meaning.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.errors import DiskError, OutputError
from fusion_core.files import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

KEY = "key.json"


def kept(kind: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """Return the directory that `make` fills, now or in an earlier run.

    `key` is all that its content depends on. Raises `DiskError` if it cannot be written.
    """
    place = place_of(kind, key)
    if place.is_dir():
        return place
    folder, text = place.parent, _text(key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with _staging(place) as new:
            _fill(new, text, make)
            _settle(new, place)
    except OSError as error:
        raise DiskError(
            f"{kind} cannot be kept in {folder}: {error.strerror or error}",
            hint="Make room or mend the permissions there, or set HF_HOME to another place.",
        ) from error
    return place


def place_of(kind: str, key: Mapping[str, Any]) -> Path:
    """Return where that is, whether or not it has been made."""
    digest = hashlib.sha256(_text(key).encode()).hexdigest()
    return hub.assets_directory() / kind / digest[:32]


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed left half made, as far as it is ours to remove.

    A run that is alive holds its lock; in a cache that is shared, another user's cannot be opened.
    """
    for left in folder.glob("[!.]*-*"):
        with suppress(OutputError, DiskError), locked(left):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _staging(place: Path) -> Iterator[Path]:
    """Lend a name of this run's own; what is there is removed in the end."""
    new = place.with_name(f"{place.name}-{secrets.token_hex(4)}")
    with locked(new):
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, indent=1)


def _fill(directory: Path, key: str, make: Callable[[Path], None]) -> None:
    directory.mkdir()
    make(directory)
    write_file(directory / KEY, key.encode())
    for path in directory.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def write_file(path: Path, data: bytes) -> None:
    """Write a new file; a cache may be shared, and a link that others plant is not followed."""
    with path.open("xb") as stream:
        stream.write(data)


def _settle(new: Path, place: Path) -> None:
    """Put a finished directory in its place, unless another run was faster."""
    try:
        new.rename(place)
    except OSError:
        if not place.is_dir():
            raise
