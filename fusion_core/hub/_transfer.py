"""Files on their way from the hub to the cache, each compared with the hub's hash when it arrives.

huggingface_hub downloads, resumes and locks; it compares sizes only. Files come one after the
other: the library fetches the parts of a large file side by side itself, and an interrupt reaches
it at once where it works on the main thread.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from fusion_core.errors import HubError
from fusion_core.hub._cache import cache_directory, room_for, snapshot_of
from fusion_core.hub._requests import ask_digests, asking, location_of, progress_bar
from fusion_core.shown import amount

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core.hub.reference import Reference
    from fusion_core.progress import Progress

_SHA256_DIGITS = 64
_CHUNK = 2**20


def transfer(pinned: Reference, sizes: Mapping[str, int], progress: Progress) -> None:
    """Download files of a commit to the cache; `sizes` are their bytes by path."""
    total = sum(sizes.values())
    free = room_for(str(pinned), total, cache_directory())
    expected = ask_digests(pinned)
    label = f"download {pinned.repo} ({amount(total)}, {amount(free)} are free)"
    with asking(pinned), progress.track(label, total=total, unit="B") as advance:
        bar = progress_bar(advance)
        try:
            for path in sizes:
                _transfer_one(pinned, path, expected.get(path), bar)
        except KeyboardInterrupt as error:
            error.add_note("Complete files are kept: the same command fetches the others.")
            raise


def _transfer_one(pinned: Reference, path: str, digest: str | None, bar: type[Any]) -> None:
    """Download a file and check its hash; a file that is not checked does not stay."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(pinned.repo, path, tqdm_class=bar, **location_of(pinned))
    file = snapshot_of(pinned) / path
    try:
        _check_digest(file, digest, f"{pinned}: {path}")
    except BaseException:
        _discard(file)
        raise


def _check_digest(file: Path, listed: str | None, label: str) -> None:
    """Compare a file with its SHA-256 (a large file) or its git object id (a small one)."""
    if listed is None:
        return
    if len(listed) == _SHA256_DIGITS:
        digest = hashlib.sha256()
    else:
        header = f"blob {file.stat().st_size}\0".encode()
        digest = hashlib.sha1(header, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    if found != listed:
        raise HubError(
            f"{label} arrived damaged: its hash is {found[:12]}..., the hub lists {listed[:12]}...",
            hint="It has been removed from the cache; run again to download it anew.",
        )


def _discard(path: Path) -> None:
    """Remove a file from the cache: the link that names it and, behind it, the data."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
