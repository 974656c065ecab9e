"""What a run asks of the hub: resolve a revision, list its files, download those that are missing.

What a revision is, is looked up once and remembered, and a commit never changes: of what the cache
has nothing is asked again, and where all of it is there, nothing goes over the network.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from fusion_core.errors import HubError
from fusion_core.hub._cache import (
    cache_directory,
    files_there,
    is_cached,
    is_offline,
    remember_commit,
    remembered_commit,
    remembered_listing,
    snapshot_of,
)
from fusion_core.hub._failures import not_cached
from fusion_core.hub._requests import ask_beginning, ask_commit, ask_listing
from fusion_core.hub._transfer import transfer
from fusion_core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from fusion_core.hub.reference import Reference

#: No pattern matches these: code, and weights that are programs. `files` fetches them by name.
_PROGRAMS = (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".so")


@dataclass(frozen=True, slots=True)
class Size:
    """How much a download takes, in bytes."""

    total: int
    #: what of it is not in the cache yet
    missing: int
    #: what is yet to be made of it and kept beside the cache
    made: int = 0


@dataclass
class Session:
    """What a run has asked of the hub so far, so that it asks once."""

    progress: Progress = field(default_factory=Progress)
    #: look up what revisions are now, also those that the cache remembers
    again: bool = False
    commits: dict[Reference, str] = field(default_factory=dict)
    listings: dict[Reference, dict[str, int]] = field(default_factory=dict)
    #: when the revisions were looked up that the cache remembers
    recalled: set[date] = field(default_factory=set)


_SESSION: ContextVar[Session | None] = ContextVar("hub session", default=None)


@contextmanager
def session(progress: Progress | None = None, *, again: bool = False) -> Iterator[Session]:
    """Show downloads in `progress`, and resolve each revision once, as long as this is open.

    With `again` those are asked of the hub that the cache remembers, too. Inside another session
    this is that one.
    """
    outer = _SESSION.get()
    if outer is not None:
        yield outer
        return
    current = Session(progress or Progress(), again)
    token = _SESSION.set(current)
    try:
        yield current
    finally:
        _SESSION.reset(token)


def resolve(reference: Reference) -> Reference:
    """Return a reference to the commit that a revision is.

    What the cache remembers counts, so that a second run reads the same as the first; a session
    `again` looks it up anew. Raises `HubError` if there is no such repository or revision, or no
    way to find out.
    """
    if reference.is_pinned:
        return reference
    known = _session().commits
    if reference not in known:
        known[reference] = _commit(reference)
    return reference.at(known[reference])


def listing(reference: Reference) -> Mapping[str, int]:
    """Return the files of a repository and their sizes in bytes."""
    pinned = resolve(reference)
    known = _session().listings
    if pinned not in known:
        found = _listed(pinned)
        if not found and is_offline():
            raise not_cached(pinned, cache_directory())
        known[pinned] = found
    return known[pinned]


def download(reference: Reference, patterns: Sequence[str]) -> Path:
    """Return a directory with every file that matches a pattern, downloading what is missing.

    A pattern is a path in the repository whose parts may hold `*`, `?` and `[...]`; `*` does not
    cross a `/`. Code and pickles match no pattern. The directory is the hub's own cache: for
    reading only, and other files may lie beside. A file stays there only if its hash is the one
    that the hub lists.

    Raises `HubError` for what the hub or the network refuses, `DiskError` if the files do not fit
    on the disk. Complete files are kept, and the next call goes on with the others.
    """
    pinned = resolve(reference)
    return _fetched(pinned, [path for path in listing(pinned) if _is_wanted(path, patterns)])


def files(reference: Reference, paths: Sequence[str]) -> Path:
    """Return a directory with exactly these files, also pickles: who asks vouches for them.

    Raises as `download` does; also `HubError` for a path that the repository does not have.
    """
    pinned = resolve(reference)
    known = listing(pinned)
    for path in paths:
        if path not in known:
            shown = ", ".join(sorted(known)[:20]) or "nothing"
            raise HubError(f"{pinned} has no file {path!r}", hint=f"It has: {shown}.")
    return _fetched(pinned, paths)


def beginning(reference: Reference, path: str, count: int) -> bytes:
    """Return the first bytes of a file, from the cache or the hub, without downloading the rest.

    Raises as `download` does.
    """
    pinned = resolve(reference)
    if is_cached(pinned, path):
        with (snapshot_of(pinned) / path).open("rb") as stream:
            return stream.read(count)
    if is_offline():
        raise not_cached(pinned, cache_directory(), path)
    return ask_beginning(pinned, path, count)


def _session() -> Session:
    return _SESSION.get() or Session()


def recalled() -> date | None:
    """Return when the oldest of the revisions was looked up that this session took from the cache.

    None if it has looked up all of them itself.
    """
    return min(_session().recalled, default=None)


def _commit(reference: Reference) -> str:
    known = remembered_commit(reference)
    if known is not None and (is_offline() or not _session().again):
        _session().recalled.add(known.since)
        return known.commit
    if is_offline():
        raise not_cached(reference, cache_directory())
    found = ask_commit(reference)
    remember_commit(reference, found)
    return found


def _listed(pinned: Reference) -> dict[str, int]:
    found = remembered_listing(pinned)
    if found is None:
        found = files_there(pinned) if is_offline() else ask_listing(pinned)
    return found


def _is_wanted(path: str, patterns: Sequence[str]) -> bool:
    return not path.endswith(_PROGRAMS) and any(_matches(path, pattern) for pattern in patterns)


def _matches(path: str, pattern: str) -> bool:
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _fetched(pinned: Reference, paths: Sequence[str]) -> Path:
    missing = [path for path in paths if not is_cached(pinned, path)]
    if missing and is_offline():
        raise not_cached(pinned, cache_directory(), missing[0])
    if missing:
        sizes = listing(pinned)
        transfer(pinned, {path: sizes[path] for path in missing}, _session().progress)
    return snapshot_of(pinned)
