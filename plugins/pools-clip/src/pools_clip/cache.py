"""A cache for expensive results of downloads: decoded images and heads.

Each key has one directory of files, next to the hub's cache. It is complete or missing. Only
results of pinned commits are cached, because the meaning of a commit never changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fusion_core import hub
from fusion_core.errors import DiskError, OutputError
from fusion_core.files import lock_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

KEY = "key.json"


def cached_directory(kind: str, key: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """Return the directory that `fill` has filled, in this run or an earlier one.

    `key` is everything that the content depends on. Raises `DiskError` if it cannot be written.
    """
    directory = cache_path(kind, key)
    if directory.is_dir():
        return directory
    parent = directory.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(parent)
        staging = directory.with_name(f"{directory.name}-{secrets.token_hex(4)}")
        with lock_output(staging):
            try:
                _fill(staging, _dump(key), fill)
                _publish(staging, directory)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise DiskError(
            f"cannot cache {kind} in {parent}: {error.strerror or error}",
            hint="Free space or fix the permissions there, or set HF_HOME to another directory.",
        ) from error
    return directory


def cache_path(kind: str, key: Mapping[str, Any]) -> Path:
    """Return the path of a directory in the cache, which may not exist yet."""
    digest = hashlib.sha256(_dump(key).encode()).hexdigest()
    return hub.assets_directory() / kind / digest[:32]


def write_file(path: Path, data: bytes) -> None:
    """Write a new file. A cache may be shared, so never follow a link of another user."""
    with path.open("xb") as stream:
        stream.write(data)


def _remove_stale(parent: Path) -> None:
    """Remove the staging directories of killed runs, where this user may.

    A live run holds the lock of its directory. The lock of another user cannot be opened.
    """
    for staging in parent.glob("[!.]*-*"):
        with suppress(OutputError, DiskError), lock_output(staging):
            shutil.rmtree(staging, ignore_errors=True)


def _dump(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, indent=1)


def _fill(staging: Path, key: str, fill: Callable[[Path], None]) -> None:
    staging.mkdir()
    fill(staging)
    write_file(staging / KEY, key.encode())
    for path in staging.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def _publish(staging: Path, directory: Path) -> None:
    """Rename a finished directory, unless another run was faster."""
    try:
        staging.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise
