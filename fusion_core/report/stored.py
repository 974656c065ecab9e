"""Reports from the directories that they were written to."""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from fusion_core.contracts.outcomes import OUTCOMES
from fusion_core.contracts.report import REPORT, Report, how_to_measure
from fusion_core.errors import FusionError, RecipeError
from fusion_core.recipe.text import RECIPE, load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def read_reports(
    directories: Iterable[Path], *, outcomes: bool = False
) -> tuple[dict[str, Report], list[FusionError]]:
    """Return the reports of model directories by name, and what is wrong with the others.

    Raises `FusionError` if none has a report.
    """
    reports: dict[str, Report] = {}
    problems: list[FusionError] = []
    for directory in directories:
        try:
            reports[str(directory)] = read_report(directory, outcomes=outcomes)
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

    With `outcomes`, what is kept of each test example is read, too. Where an expert seems to score
    below the base, its outcomes and the base's are read in any case: they tell whether that is
    chance; where they are damaged, the figures alone decide. Raises `RecipeError` for a directory
    that holds no report, `FusionError` for damaged files, or for outcomes of another report.
    """
    if not directory.is_dir():
        hint = "Name directories that fuse run wrote."
        raise RecipeError(f"{directory} is not a directory", hint=hint)
    path = directory / REPORT
    if not path.is_file():
        raise RecipeError(f"{directory} has no {REPORT}", hint=_how_to_measure(directory))
    with _naming(path, "is not a report"):
        report = Report.from_json(json.loads(path.read_bytes()))
    path = directory / OUTCOMES
    if outcomes and path.is_file():
        return _with_outcomes(report, path)
    if report.experts_below_base and path.is_file():
        with suppress(FusionError):
            return replace(_with_outcomes(report, path), tasks=report.tasks)
    return report


def _with_outcomes(report: Report, path: Path) -> Report:
    with _naming(path, f"does not go with the {REPORT} beside it"):
        return report.with_outcomes(json.loads(path.read_bytes()))


@contextmanager
def _naming(path: Path, what: str) -> Iterator[None]:
    """Raise a `FusionError` that names a damaged file and what is wrong with it."""
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FusionError(
            f"{path} {what}: {reason}", hint=f"Make it anew: fuse evaluate {path.parent}"
        ) from error


def _how_to_measure(directory: Path) -> str:
    """Say how a model can be measured, if it can: only with tasks, by a pool that builds models."""
    path = directory / RECIPE
    if path.is_file() and "task_pool" in load_recipe(path):
        return f"Measure it first: fuse evaluate {directory}"
    return how_to_measure(directory)
