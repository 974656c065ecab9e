"""The files of the package: checkpoints, images and their description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pools_checkpoints import PackagedFiles

DATA = Path(__file__).parent / "data"


def load_description() -> dict[str, Any]:
    """Return the content of tasks.json: templates, and classnames and sources by task."""
    content: dict[str, Any] = json.loads(_files().file("tasks.json").read_text(encoding="utf-8"))
    return content


def checkpoint(*parts: str) -> str:
    """Return the directory of a model: "base", or "experts" and a task."""
    return _files().directory("/".join(parts))


def images(task: str, split: str) -> str:
    """Return a task's parquet file; `split` is train, unlabeled or test."""
    return str(_files().file(f"tasks/{task}/{split}.parquet"))


def _files() -> PackagedFiles:
    return PackagedFiles(DATA, "pools-mini")
