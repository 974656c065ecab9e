"""The page: what runs left, as one file of HTML that needs nothing else."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fusion_core.commands import escape_control, format_bytes
from fusion_core.errors import FusionError
from fusion_report.charts import (
    Chart,
    against_cost,
    against_experts,
    of_coefficients,
    of_objective,
    of_vectors,
)
from fusion_report.summary import duration, sentence, tiles
from fusion_report.table import Table
from fusion_report.theme import DARK, LIGHT
from fusion_report.vectors import task_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import Progress
    from fusion_report.runs import Run

_NAMED = 3  # runs in a title


@dataclass(frozen=True)
class Section:
    """Pictures under a heading."""

    anchor: str
    title: str
    charts: Sequence[Chart]
    note: str = ""


def page(
    runs: Sequence[Run],
    *,
    progress: Progress,
    blocked: frozenset[str] = frozenset(),
    with_vectors: bool = True,
    intervals: bool = False,
) -> str:
    """Return the page about some runs; equal runs give equal pages.

    `intervals` says how sure figures are, where test examples were kept. `with_vectors` reads the
    models that were merged; where they are not here, the page says so.
    """
    reports = {run.name: run.report for run in runs if run.report is not None}
    table = Table(reports, intervals=intervals) if reports else None
    shared = list(_of_results(runs, table))
    if with_vectors and (vectors := _vectors(runs, progress, blocked)):
        shared.append(vectors)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            runs=runs,
            title=", ".join(run.name for run in runs)
            if len(runs) <= _NAMED
            else f"{len(runs)} runs",
            table=table,
            intervals=intervals,
            sentence=sentence(runs, table),
            tiles=[*tiles(runs[0], table)] if len(runs) == 1 else [],
            shared=shared,
            searches={run.name: _of_search(run, number) for number, run in enumerate(runs)},
            light=LIGHT.variables,
            dark=DARK.variables,
            version=version("fusion-report"),
        )
    )


def _of_results(runs: Sequence[Run], table: Table | None) -> list[Section]:
    if table is None:
        return []
    found = [
        Section("experts", "Against the experts", [*against_experts(table)]),
        Section("cost", "Against cost", [*against_cost(runs, table)] if table.shared else []),
    ]
    return [each for each in found if each.charts]


def _vectors(runs: Sequence[Run], progress: Progress, blocked: frozenset[str]) -> Section | None:
    """Return what is said of the models that were merged: all runs' own, or nothing."""
    recipe = runs[0].recipe
    if not recipe.get("model_pool"):
        return None
    title = "Task vectors"
    if any(run.recipe.get("model_pool") != recipe["model_pool"] for run in runs):
        return Section("vectors", title, [], "Left out: the runs do not merge the same models.")
    try:
        found = task_vectors(recipe, progress, blocked)
    except FusionError as error:
        why = f"Left out: the models that were merged cannot be read here. {error.message}"
        return Section("vectors", title, [], escape_control(why))
    return None if found is None else Section("vectors", title, [*of_vectors(found)])


def _of_search(run: Run, number: int) -> list[Section]:
    name = f"run{number}"
    found = [
        Section(f"{name}-coefficients", "Coefficients", [*of_coefficients(run, f"c{number}")]),
        Section(f"{name}-objective", "Objective", [*of_objective(run, f"o{number}")]),
    ]
    return [each for each in found if each.charts]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fusion_report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "amount": format_bytes,
        "again": _again,
        "duration": duration,
        "plain": _plain,
        "breakable": _breakable,
        "recipe": _recipe,
    }
    return environment


def _plain(text: object) -> str:
    """Show text from anywhere: nothing in it that no page may hold."""
    return escape_control(str(text))


def _breakable(text: object) -> Markup:
    """Show text that may be broken after the signs that join words."""
    return Markup(re.sub("([_/.])", r"\1<wbr />", str(escape(_plain(text)))))  # noqa: S704 - escaped


def _again(run: Run) -> str:
    """Return the command that makes a run again."""
    return f"fuse run {shlex.quote(str(run.directory / 'recipe.yaml'))} -o again"


def _recipe(run: Run) -> str:
    path = run.directory / "recipe.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
