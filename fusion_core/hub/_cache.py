"""The hub's cache on this machine, and the environment variables that configure the client.

huggingface_hub documents the layout: `refs/<revision>` holds a commit, `snapshots/<commit>/` its
files. huggingface_hub reads the environment once, when it is imported. These functions read it at
each call.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fusion_core.errors import DiskError, HubError
from fusion_core.formatting import format_bytes

if TYPE_CHECKING:
    from fusion_core.hub.reference import Reference


_SHA256 = re.compile("[0-9a-f]{64}")


def cache_directory() -> Path:
    """Return the cache's directory: HF_HUB_CACHE, HF_HOME/hub, or huggingface_hub's default."""
    if directory := os.environ.get("HF_HUB_CACHE"):
        return Path(directory).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def assets_directory() -> Path:
    """Return the directory for files derived from downloads.

    It is in HF_ASSETS_CACHE or next to the cache, as in huggingface_hub, so that one variable moves
    all derived files to another disk.
    """
    if directory := os.environ.get("HF_ASSETS_CACHE"):
        return Path(directory).expanduser() / "fusion-core"
    return cache_directory().parent / "assets" / "fusion-core"


def check_free_space(purpose: str, needed: int, directory: Path) -> int:
    """Return the free bytes of a directory; raise `DiskError` if there are fewer than `needed`."""
    free = shutil.disk_usage(_nearest_existing(directory)).free
    if needed > free:
        raise DiskError(
            f"{purpose} needs {format_bytes(needed)}, "
            f"and {format_bytes(free)} are free in {directory}",
            hint="Free some space there, or set HF_HOME to a directory on a larger disk.",
        )
    return free


def on_one_disk() -> bool:
    """Tell whether downloads and derived files share one file system."""
    directories = map(_nearest_existing, (cache_directory(), assets_directory()))
    return len({directory.stat().st_dev for directory in directories}) == 1


def endpoint() -> str | None:
    """Return the hub's address from HF_ENDPOINT, None for the default.

    Raises `HubError` if it is not a URL. The message omits the value, which may hold a password.
    """
    address = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    try:
        parts = urlsplit(address)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if address and not is_url:
        raise HubError(
            "HF_ENDPOINT is not a URL",
            hint="Give a full address such as https://huggingface.co, or unset HF_ENDPOINT.",
        )
    return address or None


def is_offline() -> bool:
    """Tell whether the environment forbids this process to open connections."""
    flag = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return flag.upper() in {"1", "ON", "YES", "TRUE"}


def snapshot_directory(pinned: Reference) -> Path:
    """Return the directory of a commit's files."""
    return _repository_directory(pinned) / "snapshots" / pinned.revision


def is_cached(pinned: Reference, path: str) -> bool:
    """Tell whether the cache has a file of a commit."""
    return (snapshot_directory(pinned) / path).is_file()


def cached_digest(pinned: Reference, path: str) -> str | None:
    """Return the SHA-256 of a large file in the cache, which names it by its hash.

    Each file was compared with that hash when it was downloaded. None for small files, and for a
    cache without links.
    """
    file = snapshot_directory(pinned) / path
    name = file.readlink().name if file.is_symlink() else ""
    return name if _SHA256.fullmatch(name) else None


def cached_commit(reference: Reference) -> tuple[str, date] | None:
    """Return the commit that the cache has for a revision, and the day it was looked up."""
    path = _repository_directory(reference) / "refs" / reference.revision
    try:
        commit = path.read_text(encoding="ascii", errors="replace").strip()
        modified = path.stat().st_mtime
    except OSError:  # missing, or not readable by this user
        return None
    if not reference.at(commit).is_pinned:  # a killed program wrote a part of it
        return None
    return commit, datetime.fromtimestamp(modified).astimezone().date()


def cache_commit(reference: Reference, commit: str) -> None:
    """Record a revision's commit for offline runs; do nothing if the cache is not writable."""
    path = _repository_directory(reference) / "refs" / reference.revision
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("x", encoding="ascii") as stream:  # never through a planted link
            stream.write(commit)
        temporary.replace(path)


def cached_listing(pinned: Reference) -> dict[str, int] | None:
    """Return the file sizes of a commit by path, as the hub listed them.

    None if the cache holds no listing, for example because another program filled it.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        entries = get_cached_repo_tree(
            pinned.repo,
            repo_type=pinned.kind,
            revision=pinned.revision,
            cache_dir=cache_directory(),
        )
    except CachedRepoTreeNotFoundError:
        return None
    return {entry.path: entry.size for entry in entries}


def cached_files(pinned: Reference) -> dict[str, int]:
    """Return the sizes of a commit's files in the cache by path."""
    root = snapshot_directory(pinned)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in paths}


def _nearest_existing(directory: Path) -> Path:
    candidates = (directory, *directory.absolute().parents)
    return next(candidate for candidate in candidates if candidate.exists())


def _repository_directory(reference: Reference) -> Path:
    return cache_directory() / f"{reference.kind}s--{reference.repo.replace('/', '--')}"
