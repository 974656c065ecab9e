"""The model that a command names: a directory, or a repository on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_core import hub
from fusion_core.commands import read_provenance
from fusion_core.errors import CheckpointError, IntegrityError
from fusion_publish.verification.record import PROVENANCE
from fusion_publish.verification.unlisted import matches

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Located:
    """A model's directory, its name for people, and the names of its files."""

    directory: Path
    subject: str
    #: None for the files of the directory
    names: tuple[str, ...] | None = None


def locate(text: str, patterns: Sequence[str] = ()) -> Located:
    """Return the directory of a path or, after a download, of `org/name` or `org/name@revision`.

    Of a repository, the files that match a pattern are downloaded, by default those that its
    provenance lists. Call it in a session of the hub. Raises `CheckpointError` for a path that does
    not exist, `IntegrityError` for a repository without a provenance.
    """
    path = Path(text)
    if path.is_dir():
        return Located(path, text)
    if path.exists() or not hub.looks_like_id(text):
        raise CheckpointError(
            f"{text} is not a directory", hint="Name an output of fuse, or org/name on the hub."
        )
    pinned = hub.resolve(hub.parse(text))
    names = tuple(sorted(hub.list_files(pinned)))
    if PROVENANCE not in names:
        raise IntegrityError(
            f"{pinned} has no {PROVENANCE}: nothing says what its files should be",
            hint="Name a model that fuse made.",
        )
    if patterns:
        files = [name for name in names if matches(name, patterns)]
    else:
        files = sorted(list_recorded(pinned).intersection(names))
    return Located(hub.download_paths(pinned, files), str(pinned), names)


def list_recorded(pinned: hub.Reference) -> set[str]:
    """Return the files that the provenance of a repository lists, itself included."""
    provenance = read_provenance(hub.download_paths(pinned, [PROVENANCE]))
    evaluation = provenance.run.evaluation
    return {PROVENANCE, *provenance.subject, *(evaluation.files if evaluation else ())}
