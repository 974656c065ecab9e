"""The files inside the package: checkpoints, images, and what they are.

Each is compared with the hash that the package lists for it before its path is given away.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fusion_core.errors import IntegrityError

DATA = Path(__file__).parent / "data"
_SUMS = "SHA256SUMS"


def description() -> dict[str, Any]:
    """Return the content of tasks.json: templates, and classnames and sources by task."""
    content: dict[str, Any] = json.loads(_checked("tasks.json").read_text(encoding="utf-8"))
    return content


def checkpoint(*parts: str) -> str:
    """Return the directory of a model: "base", or "experts" and a task."""
    folder = DATA.joinpath(*parts)
    listed = {DATA / name for name in _sums()}
    for path in {path for path in listed if path.parent == folder} | {*folder.glob("*")}:
        _checked(path.relative_to(DATA).as_posix())
    return str(folder)


def images(task: str, split: str) -> str:
    """Return a task's parquet file: split is train, unlabeled or test."""
    return str(_checked(f"tasks/{task}/{split}.parquet"))


def _checked(name: str) -> Path:
    """Return a file of the package; raises `IntegrityError` unless it is as it was made."""
    path = DATA / name
    if hashlib.sha256(_bytes_of(path)).hexdigest() != _sums().get(name):
        raise _damaged(path, "it is not the file that the package was made with")
    return path


def _sums() -> dict[str, str]:
    """Return the SHA-256 of every file, by its path in the package."""
    lines = _bytes_of(DATA / _SUMS).decode("utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error


def _damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: {reason}", hint="Install it anew: pip install --force-reinstall pools-mini."
    )
