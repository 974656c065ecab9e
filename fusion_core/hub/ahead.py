"""What is going to be read from the hub: how much of it is missing, and whether that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_core.hub.cache import is_cached
from fusion_core.hub.client import Size, files, listing, resolve
from fusion_core.hub.failures import advising
from fusion_core.hub.transfer import room_for
from fusion_core.shown import amount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusion_core.hub.reference import Reference


@dataclass(frozen=True, slots=True)
class Wanted:
    """Files of a repository that are read sooner or later."""

    reference: Reference
    paths: tuple[str, ...]
    #: what to do instead, said where they cannot be had
    otherwise: str = ""


def size_of(wanted: Iterable[Wanted]) -> Size:
    """Return how much these are and how much of it is missing; a file named twice counts once."""
    total = missing = 0
    for pinned, path in {(resolve(each.reference), path) for each in wanted for path in each.paths}:
        bytes_of_it = listing(pinned).get(path, 0)
        total += bytes_of_it
        missing += 0 if is_cached(pinned, path) else bytes_of_it
    return Size(total, missing)


def check_room(size: Size) -> str:
    """Say what has to be downloaded and what is free; raises `DiskError` if that is not enough."""
    free = room_for("the download", size.missing)
    if not size.missing:
        return "nothing to download: all of it is in the cache"
    return f"to download: {amount(size.missing)}; {amount(free)} are free"


def fetch(wanted: Iterable[Wanted]) -> None:
    """Download all of it; raises as `download` does."""
    for each in wanted:
        with advising(each.otherwise):
            files(each.reference, each.paths)
