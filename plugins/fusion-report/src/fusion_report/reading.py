"""Reports, read from the directories that they were written to."""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

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
    """Return the reports of model directories by name, and what is wrong with the others.

    Raises `FusionError` if none has a report, `DiskError` for a path that the system refuses.
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
    """Return what `fuse run` or `fuse evaluate` measured of a model directory.

    With `outcomes`, each test example's outcome is read too. Where an expert seems to score below
    the base, its outcomes and the base's are read in any case: they tell whether that is chance.
    If they are damaged, the figures alone decide.

    Raises `RecipeError` for a directory without a report, `FusionError` for damaged files, or for
    the outcomes of another report, and `DiskError` for a path that the system refuses.
    """
    try:
        return _read_report(directory, outcomes=outcomes)
    except OSError as error:
        raise DiskError(f"{error.filename}: {error.strerror}") from error


def _read_report(directory: Path, *, outcomes: bool) -> Report:
    if not directory.is_dir():
        hint = "Name directories that fuse run wrote."
        raise RecipeError(f"{directory} is not a directory", hint=hint)
    path = directory / _REPORT
    if not path.is_file():
        raise RecipeError(f"{directory} has no {_REPORT}", hint=_how_to_measure(directory))
    with _naming(path, "is not a report"):
        report = Report.from_json(json.loads(path.read_bytes()))
    path = directory / _OUTCOMES
    if outcomes and path.is_file():
        return _add_outcomes(report, path)
    if report.experts_below_base and path.is_file():
        with suppress(FusionError):
            return replace(_add_outcomes(report, path), tasks=report.tasks)
    return report


def _add_outcomes(report: Report, path: Path) -> Report:
    with _naming(path, f"does not go with the {_REPORT} beside it"):
        return report.with_outcomes(json.loads(path.read_bytes()))


@contextmanager
def _naming(path: Path, problem: str) -> Iterator[None]:
    """Raise a `FusionError` that names a damaged file and what is wrong with it."""
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FusionError(
            f"{path} {problem}: {reason}", hint=f"Make it anew: fuse evaluate {path.parent}"
        ) from error


def _how_to_measure(directory: Path) -> str:
    """Say how to measure a model that has no report: its recipe may name the tasks."""
    path = directory / _RECIPE
    if path.is_file() and "task_pool" in load_recipe(path):
        return f"Measure it first: fuse evaluate {directory}"
    return (
        f"If it is of a family that a pool knows, name it: fuse evaluate {directory} --pool NAME; "
        "see: fuse list pools\nAny other model is measured with its own library."
    )
