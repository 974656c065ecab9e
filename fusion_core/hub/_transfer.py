"""Downloads of files to the cache, each verified against the hash that the hub lists.

huggingface_hub downloads, resumes and locks, but compares sizes only. Files are downloaded one
after the other: huggingface_hub fetches the parts of a large file in parallel itself, and on the
main thread an interrupt reaches it at once.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fusion_core.errors import HubError
from fusion_core.hub._cache import cache_directory, check_free_space, snapshot_directory
from fusion_core.hub._requests import arguments_for, hub_call, progress_bar, request_digests
from fusion_core.shown import amount

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion_core.hub.reference import Reference
    from fusion_core.progress import Progress

_SHA256_DIGITS = 64
_CHUNK = 2**20


def transfer(pinned: Reference, sizes: Mapping[str, int], progress: Progress) -> None:
    """Download files of a commit to the cache; `sizes` maps their paths to bytes."""
    total = sum(sizes.values())
    free = check_free_space(str(pinned), total, cache_directory())
    digests = request_digests(pinned)
    label = f"download {pinned.repo} ({amount(total)}, {amount(free)} are free)"
    with hub_call(pinned), progress.track(label, total=total, unit="B") as advance:
        from huggingface_hub import hf_hub_download

        bar = progress_bar(advance)
        try:
            for path in sizes:
                hf_hub_download(pinned.repo, path, tqdm_class=bar, **arguments_for(pinned))
                _verify(pinned, path, digests.get(path))
        except KeyboardInterrupt as error:
            error.add_note("Complete files are kept: the same command fetches the others.")
            raise


def _verify(pinned: Reference, path: str, expected: str | None) -> None:
    """Compare a file with its listed hash, and remove it from the cache unless they match."""
    if expected is None:
        return
    file = snapshot_directory(pinned) / path
    actual = ""
    try:
        actual = _digest(file, expected)
    finally:  # after an interrupt too: an unverified file must not stay
        if actual != expected:
            _remove(file)
    if actual != expected:
        raise HubError(
            f"checksum mismatch for {pinned}: {path}: the hub lists {expected[:12]}..., "
            f"got {actual[:12]}...",
            hint="The file was removed from the cache. Run again to download it anew.",
        )


def _digest(file: Path, expected: str) -> str:
    """Return the SHA-256 (large files) or the git object id (small files), like `expected`."""
    if len(expected) == _SHA256_DIGITS:
        digest = hashlib.sha256()
    else:
        header = f"blob {file.stat().st_size}\0".encode()
        digest = hashlib.sha1(header, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    """Remove a file from the cache: the link in the snapshot and the blob that it points to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
