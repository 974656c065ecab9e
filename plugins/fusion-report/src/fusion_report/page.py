"""Render the page about runs as one self-contained HTML file."""

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
    chart_coefficients,
    chart_costs,
    chart_experts,
    chart_objective,
    chart_vectors,
)
from fusion_report.reading import resolve_paths
from fusion_report.summary import format_duration, summarise, tiles
from fusion_report.table import PageTable
from fusion_report.theme import DARK, LIGHT
from fusion_report.vectors import read_task_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import Progress
    from fusion_report.runs import Run

_MAX_NAMES = 3  # runs named in the title


@dataclass(frozen=True)
class Section:
    """A heading with charts and an optional note."""

    anchor: str
    title: str
    charts: Sequence[Chart]
    note: str = ""


def render_page(
    runs: Sequence[Run],
    *,
    progress: Progress,
    blocked: frozenset[str] = frozenset(),
    with_vectors: bool = True,
    intervals: bool = False,
) -> str:
    """Return the page about runs as HTML; equal runs give equal pages.

    `intervals` adds 95 % intervals for tasks with outcomes. `with_vectors` reads the merged models;
    if they are missing, the page says so.
    """
    reports = {run.name: run.report for run in runs if run.report is not None}
    table = PageTable(reports, intervals=intervals) if reports else None
    shared = _result_sections(runs, table)
    if with_vectors and (vectors := _vector_section(runs, progress, blocked)):
        shared.append(vectors)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            runs=runs,
            title=", ".join(run.name for run in runs)
            if len(runs) <= _MAX_NAMES
            else f"{len(runs)} runs",
            table=table,
            sentence=summarise(runs, table),
            tiles=[*tiles(runs[0], table)] if len(runs) == 1 else [],
            shared=shared,
            searches={run.name: _search_sections(run, number) for number, run in enumerate(runs)},
            light=LIGHT.variables,
            dark=DARK.variables,
            version=version("fusion-report"),
        )
    )


def _result_sections(runs: Sequence[Run], table: PageTable | None) -> list[Section]:
    if table is None:
        return []
    sections = [
        Section("experts", "Against the experts", [*chart_experts(table)]),
        Section("cost", "Against cost", [*chart_costs(runs, table)] if table.shared else []),
    ]
    return [section for section in sections if section.charts]


def _vector_section(
    runs: Sequence[Run], progress: Progress, blocked: frozenset[str]
) -> Section | None:
    """Return the section about task vectors; a note instead if runs merge different models."""
    recipe = runs[0].recipe
    if not recipe.get("model_pool"):
        return None
    title = "Task vectors"
    pools = [resolve_paths(run.recipe.get("model_pool"), run.directory) for run in runs]
    if any(pool != pools[0] for pool in pools):
        return Section("vectors", title, [], "Not shown: the runs merge different models.")
    try:
        vectors = read_task_vectors(recipe, progress, blocked)
    except FusionError as error:
        note = f"Not shown: the merged models cannot be read here. {error.message}"
        return Section("vectors", title, [], escape_control(note))
    return None if vectors is None else Section("vectors", title, [*chart_vectors(vectors)])


def _search_sections(run: Run, number: int) -> list[Section]:
    name = f"run{number}"
    sections = [
        Section(f"{name}-coefficients", "Coefficients", [*chart_coefficients(run, f"c{number}")]),
        Section(f"{name}-objective", "Objective", [*chart_objective(run, f"o{number}")]),
    ]
    return [section for section in sections if section.charts]


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
        "rerun": _rerun_command,
        "duration": format_duration,
        "plain": _escape_controls,
        "breakable": _allow_breaks,
        "recipe": _read_recipe,
    }
    return environment


def _escape_controls(text: object) -> str:
    """Return untrusted text without control characters."""
    return escape_control(str(text))


def _allow_breaks(text: object) -> Markup:
    """Return text with possible line breaks after `_`, `/` and `.`."""
    escaped = str(escape(_escape_controls(text)))
    return Markup(re.sub("([_/.])", r"\1<wbr />", escaped))  # noqa: S704 - escaped


def _rerun_command(run: Run) -> str:
    """Return the command that repeats a run."""
    return f"fuse run {shlex.quote(str(run.directory / 'recipe.yaml'))} -o again"


def _read_recipe(run: Run) -> str:
    path = run.directory / "recipe.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
