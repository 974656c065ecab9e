"""Downloads that a run will need: their size, the disk space for them, and the files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.formatting import format_bytes
from fusion_core.hub._cache import (
    assets_directory,
    cache_directory,
    check_free_space,
    is_cached,
    on_one_disk,
)
from fusion_core.hub._client import download_paths, list_files, oldest_lookup, resolve
from fusion_core.hub._errors import add_advice

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

    from fusion_core.hub.reference import Reference


@dataclass(frozen=True, slots=True)
class FileRequest:
    """Files of one repository that a run will read."""

    reference: Reference
    paths: tuple[str, ...]
    #: bytes that will be derived from them and stored in `assets_directory`, as far as known
    made: int = 0
    #: advice to add to the hint if the download fails
    otherwise: str = ""


@dataclass(frozen=True, slots=True)
class DownloadSize:
    """The size of a download in bytes."""

    total: int
    #: bytes that are not in the cache
    missing: int
    #: bytes that will be derived from the files and stored in `assets_directory`
    made: int = 0


def measure_download(wanted: Iterable[FileRequest]) -> DownloadSize:
    """Return the total and missing bytes of requested files; a repeated file counts once."""
    requests = list(wanted)
    total = missing = 0
    for pinned, path in {
        (resolve(item.reference), path) for item in requests for path in item.paths
    }:
        size = list_files(pinned).get(path, 0)
        total += size
        missing += 0 if is_cached(pinned, path) else size
    return DownloadSize(total, missing, sum(item.made for item in requests))


def describe_age(since: date) -> str:
    """Say that the cache answered for revisions, the oldest of which was looked up on a day."""
    return f"revisions as of {since} (fuse download updates them)"


def check_space(size: DownloadSize, since: date | None = None) -> str:
    """Return a line with the bytes to download and decode, the free space and the revisions' age.

    `since` is the day on which the oldest revision was looked up, by default in this session.
    Raises `DiskError` if the space is too small.
    """
    if on_one_disk():
        purpose = "the download and the data decoded from it" if size.made else "the download"
        free = check_free_space(purpose, size.missing + size.made, cache_directory())
    else:
        check_free_space("the decoded data", size.made, assets_directory())
        free = check_free_space("the download", size.missing, cache_directory())
    since = since or oldest_lookup()
    age = f"; {describe_age(since)}" if since else ""
    needed = {"to download": size.missing, "to store decoded": size.made}
    parts = [f"{label}: {format_bytes(count)}" for label, count in needed.items() if count]
    if not parts:
        return f"nothing to download: all files are in the cache{age}"
    return f"{', '.join(parts)}; {format_bytes(free)} are free{age}"


def download_requests(wanted: Iterable[FileRequest]) -> list[str]:
    """Download requested files and return their local paths; raise the errors of `download`."""
    local_paths: list[str] = []
    for request in wanted:
        with add_advice(request.otherwise):
            directory = download_paths(request.reference, request.paths)
        local_paths += [str(directory / path) for path in request.paths]
    return local_paths
