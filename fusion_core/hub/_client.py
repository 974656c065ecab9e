"""Resolve revisions, list repositories and download the files that the cache lacks.

A revision is looked up once and then read from the cache, and a commit never changes. If all files
are in the cache, nothing goes over the network.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from fusion_core.errors import HubError, RecipeError
from fusion_core.hub._cache import (
    cache_commit,
    cache_directory,
    cached_commit,
    cached_files,
    cached_listing,
    is_cached,
    is_offline,
    snapshot_directory,
)
from fusion_core.hub._errors import not_cached
from fusion_core.hub._requests import (
    download_files,
    request_beginning,
    request_commit,
    request_listing,
)
from fusion_core.hub.reference import parse_key
from fusion_core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from fusion_core.hub.reference import Reference

#: Code, and weights that can run code. No pattern matches these; `files` downloads them by name.
_PROGRAMS = (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".so")


@dataclass
class Session:
    """The hub's answers so far, so that a run asks each question once."""

    progress: Progress = field(default_factory=Progress)
    #: look up revisions on the hub even if the cache knows them
    again: bool = False
    #: whether later sessions take the new commits for these revisions
    updates: bool = True
    commits: dict[Reference, str] = field(default_factory=dict)
    listings: dict[Reference, dict[str, int]] = field(default_factory=dict)
    #: days on which the revisions taken from the cache were looked up
    lookups: set[date] = field(default_factory=set)


_SESSION: ContextVar[Session | None] = ContextVar("hub session", default=None)


@contextmanager
def session(
    progress: Progress | None = None, *, again: bool = False, updates: bool = True
) -> Iterator[Session]:
    """Report downloads to `progress` and resolve each revision once while the session is open.

    With `again`, also look up revisions that the cache knows; without `updates`, later sessions
    keep the commits that it knows. A nested session joins the outer one.
    """
    outer = _SESSION.get()
    if outer is not None:
        yield outer
        return
    current = Session(progress or Progress(), again, updates)
    token = _SESSION.set(current)
    try:
        yield current
    finally:
        _SESSION.reset(token)


def pin(commits: Mapping[str, str]) -> None:
    """Take these commits for revisions, by reference, until the open session is closed.

    A reference reads `org/name@main`, that of a data set `datasets/org/name@main`. Raises
    `RecipeError` for anything else, and for a value that is not a commit.
    """
    pinned = {parse_key(text): commit for text, commit in commits.items()}
    for reference, commit in pinned.items():
        if not reference.at(commit).is_pinned:
            raise RecipeError(
                f"{reference.key}: expected a commit of 40 hexadecimal digits, got {commit!r}",
                hint="Lock the recipe again: fuse lock RECIPE.",
            )
    _session().commits.update(pinned)


def resolved_commits() -> dict[str, str]:
    """Return the commits of the revisions that the open session has resolved, as `pin` takes."""
    commits = {reference.key: commit for reference, commit in _session().commits.items()}
    return dict(sorted(commits.items()))


def resolve(reference: Reference) -> Reference:
    """Return a reference to the commit behind a revision.

    The cache answers first, so that a second run reads the same files as the first; a session with
    `again` asks the hub. Raises `HubError` if the repository or revision is unknown, or if neither
    the cache nor the hub can answer.
    """
    if reference.is_pinned:
        return reference
    current = _session()
    if reference not in current.commits:
        current.commits[reference] = _look_up(reference, current)
    return reference.at(current.commits[reference])


def list_files(reference: Reference) -> Mapping[str, int]:
    """Return the files of a repository and their sizes in bytes."""
    pinned = resolve(reference)
    listings = _session().listings
    if pinned not in listings:
        sizes = cached_listing(pinned)
        if sizes is None:
            sizes = cached_files(pinned) if is_offline() else request_listing(pinned)
        if not sizes and is_offline():
            raise not_cached(pinned, cache_directory())
        listings[pinned] = sizes
    return listings[pinned]


def download(reference: Reference, patterns: Sequence[str]) -> Path:
    """Download the missing files that match any pattern, and return their directory.

    A pattern is a path in the repository with `*`, `?` and `[...]`; `*` does not match a `/`. Code
    and pickles match no pattern. The directory belongs to the hub's cache: it is read-only and may
    hold other files too. Each downloaded file is compared with the hash that the hub lists.

    Raises `HubError` for failures of the hub or the network, `DiskError` if the disk is too small.
    Complete files stay in the cache, and the next call downloads the others.
    """
    pinned = resolve(reference)
    paths = [
        path
        for path in list_files(pinned)
        if not path.endswith(_PROGRAMS) and any(_matches(path, pattern) for pattern in patterns)
    ]
    return _download(pinned, paths)


def download_paths(reference: Reference, paths: Sequence[str]) -> Path:
    """Download exactly these files, pickles included, and return their directory.

    The caller vouches for the files. Raises the errors of `download`, and `HubError` for a path
    that the repository lacks.
    """
    pinned = resolve(reference)
    sizes = list_files(pinned)
    for path in paths:
        if path not in sizes:
            existing = ", ".join(sorted(sizes)[:20]) or "no files"
            raise HubError(f"{pinned} has no file {path!r}", hint=f"It has: {existing}.")
    return _download(pinned, paths)


def read_beginning(reference: Reference, path: str, count: int) -> bytes:
    """Return the first `count` bytes of a file without downloading the rest.

    Raises the errors of `download`.
    """
    pinned = resolve(reference)
    if is_cached(pinned, path):
        with (snapshot_directory(pinned) / path).open("rb") as stream:
            return stream.read(count)
    if is_offline():
        raise not_cached(pinned, cache_directory(), path)
    return request_beginning(pinned, path, count)


def oldest_lookup() -> date | None:
    """Return when the oldest revision that this session took from the cache was looked up."""
    return min(_session().lookups, default=None)


def _session() -> Session:
    return _SESSION.get() or Session()


def _look_up(reference: Reference, current: Session) -> str:
    cached = cached_commit(reference)
    if cached is not None and (is_offline() or not current.again):
        commit, day = cached
        current.lookups.add(day)
        return commit
    if is_offline():
        raise not_cached(reference, cache_directory())
    commit = request_commit(reference)
    if cached is None or current.updates:
        cache_commit(reference, commit)
    return commit


def _matches(path: str, pattern: str) -> bool:
    names, name_patterns = path.split("/"), pattern.split("/")
    return len(names) == len(name_patterns) and all(map(fnmatchcase, names, name_patterns))


def _download(pinned: Reference, paths: Sequence[str]) -> Path:
    missing = [path for path in paths if not is_cached(pinned, path)]
    if missing and is_offline():
        raise not_cached(pinned, cache_directory(), missing[0])
    if missing:
        sizes = list_files(pinned)
        download_files(pinned, {path: sizes[path] for path in missing}, _session().progress)
    return snapshot_directory(pinned)
