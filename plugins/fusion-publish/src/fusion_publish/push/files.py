"""The files of a merge that are published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.files import resolve_member
from fusion_publish.verification.unlisted import is_local
from fusion_publish.verification.verifying import list_names

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class PublishedFile:
    """A file to upload."""

    name: str
    path: Path
    size: int


def list_files(directory: Path) -> list[PublishedFile]:
    """Return the files of a directory in the order of their names.

    Those that belong to git or to the hub's client are left out. Raises `CheckpointError` for
    a link out of the directory: it could publish any file.
    """
    names = [name for name in list_names(directory) if not is_local(name)]
    paths = {name: resolve_member(directory / name) for name in names}
    return [PublishedFile(name, path, path.stat().st_size) for name, path in paths.items()]
