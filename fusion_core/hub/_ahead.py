"""What is going to be read from the hub: how much of it is missing, and whether that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.hub._cache import (
    assets_directory,
    cache_directory,
    is_cached,
    on_one_disk,
    room_for,
)
from fusion_core.hub._client import Size, files, listing, recalled, resolve
from fusion_core.hub._failures import advising
from fusion_core.shown import amount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusion_core.hub.reference import Reference


@dataclass(frozen=True, slots=True)
class Wanted:
    """Files of a repository that are read sooner or later."""

    reference: Reference
    paths: tuple[str, ...]
    #: what is yet to be made of them and kept in `assets_directory`, in bytes, as far as is known
    made: int = 0
    #: what to do instead, said where they cannot be had
    otherwise: str = ""


def size_of(wanted: Iterable[Wanted]) -> Size:
    """Return how much these are and how much of it is missing; a file named twice counts once."""
    wanted = list(wanted)
    total = missing = 0
    for pinned, path in {(resolve(each.reference), path) for each in wanted for path in each.paths}:
        bytes_of_it = listing(pinned).get(path, 0)
        total += bytes_of_it
        missing += 0 if is_cached(pinned, path) else bytes_of_it
    return Size(total, missing, sum(each.made for each in wanted))


def check_room(size: Size) -> str:
    """Say what will be downloaded, decoded and kept, what is free, and how old the revisions are.

    Raises `DiskError` if that is not enough.
    """
    needed = {"to download": size.missing, "to keep decoded": size.made}
    what = ", ".join(f"{each}: {amount(count)}" for each, count in needed.items() if count)
    free = _room(size)
    if not what:
        return f"nothing to download: all of it is in the cache{_age()}"
    return f"{what}; {amount(free)} are free{_age()}"


def _age() -> str:
    """Say that revisions were not looked up, where they may have moved since."""
    since = recalled()
    return f"; revisions as of {since} (fuse download looks again)" if since else ""


def _room(size: Size) -> int:
    """Return the free room of the cache; what is made may lie on a disk of its own."""
    if on_one_disk():
        what = "the download, with what is decoded of it," if size.made else "the download"
        return room_for(what, size.missing + size.made, cache_directory())
    room_for("what is decoded", size.made, assets_directory())
    return room_for("the download", size.missing, cache_directory())


def fetch(wanted: Iterable[Wanted]) -> list[str]:
    """Download all of it, and return where the files are; raises as `download` does."""
    found: list[str] = []
    for each in wanted:
        with advising(each.otherwise):
            directory = files(each.reference, each.paths)
        found += [str(directory / path) for path in each.paths]
    return found
