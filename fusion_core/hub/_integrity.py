"""Is a downloaded file what the hub lists? Its client compares sizes only."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fusion_core.errors import HubError

if TYPE_CHECKING:
    from pathlib import Path

_SHA256_DIGITS = 64
_CHUNK = 2**20


def check_digest(path: Path, listed: str | None, label: str) -> None:
    """Compare a file with its sha256 (a large file) or its git object id (a small one).

    Raises `HubError` naming the file.
    """
    if listed is None:
        return
    found = _sha256(path) if len(listed) == _SHA256_DIGITS else _git_id(path)
    if found != listed:
        raise HubError(
            f"{label} arrived damaged: its hash is {found[:12]}..., the hub lists {listed[:12]}...",
            hint="It has been removed from the cache; run again to download it anew.",
        )


def discard(path: Path) -> None:
    """Remove a file from the cache: the link that names it and, behind it, the data."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _git_id(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
