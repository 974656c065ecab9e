"""Reports from the directories that they were written to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fusion_core.errors import FusionError, RecipeError
from fusion_core.task_pool import REPORT, Report

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def read_reports(directories: Iterable[Path]) -> dict[str, Report]:
    """Return the reports of model directories, under the directories' names.

    Raises as `read_report` does.
    """
    return {str(each): read_report(each) for each in directories}


def read_report(directory: Path) -> Report:
    """Return what `fuse run` or `fuse evaluate` measured of a model directory.

    Raises `RecipeError` for a directory that holds no report, `FusionError` for a damaged one.
    """
    if not directory.is_dir():
        raise RecipeError(f"{directory} is no directory", hint="Name those that fuse run wrote.")
    path = directory / REPORT
    if not path.is_file():
        raise RecipeError(
            f"{directory} has no {REPORT}", hint=f"Measure it first: fuse evaluate {directory}"
        )
    try:
        return Report.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FusionError(
            f"{path} is no report: {reason}", hint=f"Make it anew: fuse evaluate {directory}"
        ) from error
