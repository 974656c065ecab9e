"""The hub's own cache on this machine: where it is, and what lies there.

Its layout is documented: `refs/<revision>` holds a commit, `snapshots/<commit>/` the files. The
environment is read when it is asked for; huggingface_hub reads it once, when it is imported, which
may have been long ago.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fusion_core.errors import DiskError, HubError
from fusion_core.shown import amount

if TYPE_CHECKING:
    from fusion_core.hub.reference import Reference

_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True, slots=True)
class Remembered:
    """A commit that a revision was, and when the hub was asked."""

    commit: str
    since: date


def cache_directory() -> Path:
    """Return the directory of the cache: HF_HUB_CACHE, or where HF_HOME says."""
    if given := os.environ.get("HF_HUB_CACHE"):
        return Path(given).expanduser()
    if given := os.environ.get("HF_HOME"):
        return Path(given).expanduser() / "hub"
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def assets_directory() -> Path:
    """Return where to keep what is made of downloads: HF_ASSETS_CACHE, or beside the cache.

    The convention of huggingface_hub, so that one variable moves all of it to another disk.
    """
    if given := os.environ.get("HF_ASSETS_CACHE"):
        return Path(given).expanduser() / "fusion-core"
    return cache_directory().parent / "assets" / "fusion-core"


def room_for(what: str, needed: int, directory: Path) -> int:
    """Return how much is free in a directory; raises `DiskError` if that is not enough."""
    free = shutil.disk_usage(_existing(directory)).free
    if needed > free:
        raise DiskError(
            f"{what} needs {amount(needed)}, and {amount(free)} are free in {directory}",
            hint="Make room there, or set HF_HOME to a directory on a larger disk.",
        )
    return free


def on_one_disk() -> bool:
    """Tell whether downloads and what is made of them take the same room."""
    places = (cache_directory(), assets_directory())
    return len({_existing(position).stat().st_dev for position in places}) == 1


def endpoint() -> str | None:
    """Return the hub's address, None for the usual one.

    Raises `HubError` for what is not one; it is not shown, for it may hold a password.
    """
    given = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    try:
        parts = urlsplit(given)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if given and not is_url:
        raise HubError(
            "HF_ENDPOINT is not a URL",
            hint="Write the whole address, https://huggingface.co for one, or unset HF_ENDPOINT.",
        )
    return given or None


def is_offline() -> bool:
    """Tell whether this process must not open a connection."""
    given = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return given.upper() in _TRUE


def snapshot_of(pinned: Reference) -> Path:
    """Return the directory of a commit's files."""
    return _folder(pinned) / "snapshots" / pinned.revision


def is_cached(pinned: Reference, path: str) -> bool:
    """Tell whether a file of a commit is there."""
    return (snapshot_of(pinned) / path).is_file()


def remembered_commit(reference: Reference) -> Remembered | None:
    """Return the commit that a revision was when the hub was last asked, if that is known."""
    path = _folder(reference) / "refs" / reference.revision
    try:
        commit = path.read_text(encoding="ascii", errors="replace").strip()
        since = datetime.fromtimestamp(path.stat().st_mtime).astimezone().date()
    except OSError:  # never asked, or another user's secret
        return None
    # Half of one was written by a program that was killed.
    return Remembered(commit, since) if reference.at(commit).is_pinned else None


def remember_commit(reference: Reference, commit: str) -> None:
    """Keep a revision's commit for runs without a network, where the cache can be written.

    Where it cannot, a run with a network needs nothing of it.
    """
    path = _folder(reference) / "refs" / reference.revision
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("x", encoding="ascii") as stream:  # no link that others planted there
            stream.write(commit)
        temporary.replace(path)


def remembered_listing(pinned: Reference) -> dict[str, int] | None:
    """Return the sizes of a commit's files as they were listed when the hub was first asked.

    None if that is not known: a cache that another program filled may lack it.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        found = get_cached_repo_tree(
            pinned.repo,
            repo_type=pinned.kind,
            revision=pinned.revision,
            cache_dir=cache_directory(),
        )
    except CachedRepoTreeNotFoundError:
        return None
    return {file.path: file.size for file in found}


def files_there(pinned: Reference) -> dict[str, int]:
    """Return the sizes of what lies in a commit's directory."""
    root = snapshot_of(pinned)
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in found}


def _existing(directory: Path) -> Path:
    return next(each for each in (directory, *directory.absolute().parents) if each.exists())


def _folder(reference: Reference) -> Path:
    return cache_directory() / f"{reference.kind}s--{reference.repo.replace('/', '--')}"
