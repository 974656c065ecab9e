"""Read the reports in model directories."""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fusion_core import Report
from fusion_core.commands import load_recipe
from fusion_core.errors import DiskError, FusionError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_REPORT, _OUTCOMES, _RECIPE = "report.json", "outcomes.json", "recipe.yaml"


def read_reports(
    directories: Iterable[Path], *, outcomes: bool = False
) -> tuple[dict[str, Report], list[FusionError]]:
    """Return reports by directory, and the errors of directories without a readable report.

    Raises `FusionError` if no directory has a report, `DiskError` if the system refuses a path.
    """
    reports: dict[str, Report] = {}
    problems: list[FusionError] = []
    for directory in directories:
        try:
            reports[str(directory)] = read_report(directory, outcomes=outcomes)
        except DiskError:
            raise
        except FusionError as problem:
            problems.append(problem)
    if len(problems) == 1 and not reports:
        raise problems[0]
    if not reports:
        lines = "\n".join(problem.message for problem in problems)
        raise RecipeError(lines, hint="Name directories that fuse run wrote and measured.")
    return reports, problems


def read_report(directory: Path, *, outcomes: bool = False) -> Report:
    """Return the report that `fuse run` or `fuse evaluate` wrote to a model directory.

    With `outcomes`, also read the outcome of every test example. If an expert seems to score below
    the base, the outcomes of both are read in any case, to tell whether that is chance. If they are
    damaged, the scores alone decide.

    Raises `RecipeError` for a missing report, `FusionError` for damaged files and for outcomes of
    another report, and `DiskError` if the system refuses a path.
    """
    try:
        return _read_report(directory, outcomes=outcomes)
    except OSError as error:
        raise DiskError(f"{error.filename}: {error.strerror}") from error


def _read_report(directory: Path, *, outcomes: bool) -> Report:
    if not directory.is_dir():
        hint = "Name directories that fuse run wrote."
        raise RecipeError(f"not a directory: {directory}", hint=hint)
    path = directory / _REPORT
    if not path.is_file():
        raise RecipeError(f"{directory} has no {_REPORT}", hint=_measure_hint(directory))
    with _report_damage(path, "is not a valid report"):
        report = Report.from_json(json.loads(path.read_bytes()))
    path = directory / _OUTCOMES
    if outcomes and path.is_file():
        return _add_outcomes(report, path)
    if report.experts_below_base and path.is_file():
        with suppress(FusionError):
            return replace(_add_outcomes(report, path), tasks=report.tasks)
    return report


def _add_outcomes(report: Report, path: Path) -> Report:
    with _report_damage(path, f"does not match the {_REPORT} in the same directory"):
        return report.with_outcomes(json.loads(path.read_bytes()))


@contextmanager
def _report_damage(path: Path, problem: str) -> Iterator[None]:
    """Turn errors of a damaged file into a `FusionError` that names it."""
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FusionError(
            f"{path} {problem}: {reason}", hint=f"Write it again with fuse evaluate {path.parent}"
        ) from error


def _measure_hint(directory: Path) -> str:
    """Say how to measure a model without a report."""
    path = directory / _RECIPE
    if path.is_file() and "task_pool" in load_recipe(path):
        return f"Measure the model first: fuse evaluate {directory}"
    return (
        f"Measure the model with a pool of its family: fuse evaluate {directory} --pool NAME "
        "(fuse list pools shows them)\nMeasure any other model with its own library."
    )


def resolve_paths(value: Any, folder: Path) -> Any:  # noqa: ANN401 - JSON
    """Return a value of a folder's recipe with the paths of existing files from the root.

    Outputs in several directories spell one path differently, and several paths alike.
    """
    match value:
        case str() if "/" in value and (folder / value).exists():
            return str((folder / value).resolve())
        case dict():
            return {key: resolve_paths(item, folder) for key, item in value.items()}
        case list():
            return [resolve_paths(item, folder) for item in value]
        case _:
            return value
