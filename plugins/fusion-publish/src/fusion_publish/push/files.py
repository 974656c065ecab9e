"""The files of a merge that are published, compared with its provenance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fusion_core.errors import IntegrityError
from fusion_core.files import open_named, report_unreadable
from fusion_publish.card.outputs import PROVENANCE, read_provenance

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Files that evaluations, cards and users add to an output. The provenance does not list them.
_ADDED = (
    *("README.md", ".eval_results/*.yaml", "report.json", "report.html", "outcomes.json"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", ".gitattributes"),
)
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class PublishedFile:
    """A file to upload."""

    name: str
    path: Path
    size: int


def list_files(directory: Path) -> list[PublishedFile]:
    """Return the files of a directory in the order of their names."""
    paths = {name: directory / name for name in sorted(_walk(directory))}
    return [PublishedFile(name, path, path.stat().st_size) for name, path in paths.items()]


def verify(directory: Path) -> None:
    """Compare a directory with its provenance.

    Raises `CheckpointError` for a directory that no run wrote, and `IntegrityError` with a line per
    file that is missing, unknown, or differs from the provenance.
    """
    listed = read_provenance(directory)["outputs"]["files"]
    names = sorted(_walk(directory))
    missing = [f"missing: {name}" for name in listed if name not in names]
    unknown = [f"unknown: {name}" for name in names if not _is_known(directory, name, listed)]
    changed = [
        f"changed: {name}"
        for name in names
        if name in listed and not _matches(directory / name, listed[name])
    ]
    if problems := [*missing, *unknown, *changed]:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise IntegrityError(
            f"{directory} is not as its run left it:\n{lines}",
            hint="Merge again from recipe.yaml, or move unknown files away.",
        )


def _walk(directory: Path) -> Iterator[str]:
    for path in directory.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(directory).as_posix()


def _is_known(directory: Path, name: str, listed: Mapping[str, Any]) -> bool:
    """Tell whether a file may be in the directory. A link could lead to anything."""
    if (directory / name).is_symlink():
        return name in listed
    added = (PROVENANCE, *_ADDED)
    return name in listed or any(fnmatchcase(name, pattern) for pattern in added)


def _matches(path: Path, expected: Mapping[str, Any]) -> bool:
    """Compare a file's size and digest with the provenance, which has one of a shard's header."""
    if path.is_symlink() or path.stat().st_size != expected.get("bytes"):
        return False
    with report_unreadable(path), open(open_named(path), "rb") as stream:  # noqa: PTH123
        if "sha256" in expected:
            return hashlib.file_digest(stream, "sha256").hexdigest() == str(expected["sha256"])
        length = stream.read(_LENGTH_BYTES)
        header = length + stream.read(int.from_bytes(length, "little"))
        return hashlib.sha256(header).hexdigest() == str(expected.get("header_sha256"))
