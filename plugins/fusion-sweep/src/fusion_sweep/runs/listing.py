"""Rows of sweeps and runs, as mappings of columns to values."""

from __future__ import annotations

import csv
import math
import shlex
from contextlib import suppress
from io import StringIO
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from fusion_sweep.objectives import Objective
from fusion_sweep.results import SweepResult

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from fusion_sweep.store import Store
    from fusion_sweep.trial import Trial

Row = dict[str, Any]
_LETTERS = 8
_HIDDEN = {"on", "cpu", "finished"}  # columns that a table of runs does not need


def sweep_rows(store: Store) -> list[Row]:
    """Return one row per sweep, the newest last."""
    rows: list[Row] = []
    for sweep in store.sweeps():
        finished, failed, total = store.counts(sweep.id)
        rows.append(
            {
                "sweep": sweep.id[:_LETTERS],
                "started": sweep.started,
                "finished": finished,
                "failed": failed,
                "runs": total,
                "objective": ",".join(sweep.about["objectives"]),
                "on": sweep.about["on"],
                "over": ", ".join(sweep.about["over"]),
            }
        )
    return rows


def load_result(store: Store, name: str) -> SweepResult:
    """Return the result of a sweep so far."""
    sweep = store.sweep(name)
    objectives = [Objective(objective) for objective in sweep.about["objectives"]]
    tested = None if sweep.tested is None else store.recall(sweep.tested)
    trials = store.trials_of(sweep.id)
    for trial in trials:
        store.check_measured(trial, objectives)
    return SweepResult(sweep.id, objectives, sweep.about["on"], trials, tested)


def filter_rows(rows: list[Row], where: Sequence[str]) -> list[Row]:
    """Return the rows that meet all conditions `column=value`."""
    selected = rows
    for condition in where:
        column, separator, value = condition.partition("=")
        if not separator:
            raise RecipeError(f"--where: expected COLUMN=VALUE, got {condition!r}")
        _check_column(rows, column)
        selected = [row for row in selected if _stands_for(value, column, row.get(column))]
    return selected


def _stands_for(text: str, column: str, value: Any) -> bool:  # noqa: ANN401 - any value
    """Tell whether a text is a value as it is, as the table shows it, or as another number."""
    if text in {_text(value), _cell(column, value)}:
        return True
    with suppress(ValueError):
        return type(value) in {int, float} and float(text) == value
    return False


def sort_rows(
    rows: list[Row], column: str | None, lower_is_better: Collection[str] = ()
) -> list[Row]:
    """Return rows sorted by a column, the best or largest numbers first.

    Missing values and NaN sort last.
    """
    if column is None:
        return rows
    _check_column(rows, column)
    present = [row for row in rows if not _is_missing(row.get(column))]
    is_numeric = all(isinstance(row[column], int | float) for row in present)
    present.sort(
        key=lambda row: row[column] if is_numeric else str(row[column]),
        reverse=is_numeric and column not in lower_is_better,
    )
    return [*present, *(row for row in rows if _is_missing(row.get(column)))]


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def format_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the columns that are not empty."""
    columns = [name for name in _columns(rows) if any(_text(row.get(name)) for row in rows)]
    columns = [name for name in columns if name not in _HIDDEN or "sweep" in columns]
    return columns, [[_cell(name, row.get(name)) for name in columns] for row in rows]


def format_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV with a heading."""
    file = StringIO()
    writer = csv.DictWriter(file, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def trial_as_json(trial: Trial) -> Row:
    """Return a trial as JSON."""
    return {
        "run": trial.id,
        "recipe": trial.recipe,
        "measured": trial.measured,
        "report": None if trial.report is None else trial.report.as_json(),
        "error": trial.error,
        "seconds": trial.seconds,
        "cpu": trial.cpu,
        "finished": trial.finished,
    }


def describe_trial(trial: Trial, store: Path | None) -> Iterator[str]:
    """Yield the lines above a trial's recipe; `store` is the one that the user named."""
    yield f"run {trial.id}, {trial.finished}, {trial.seconds:g} s"
    for task, metrics in ({} if trial.report is None else trial.report.tasks).items():
        yield f"{task}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    yield f"measured on: {trial.measured['on']}" if trial.error is None else trial.error
    short = trial.id[:_LETTERS]
    option = "" if store is None else f" --store {shlex.quote(str(store))}"
    yield f"fuse runs show {short}{option} > {short}.yaml && fuse run {short}.yaml -o merged"


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _check_column(rows: Sequence[Row], column: str) -> None:
    columns = _columns(rows)
    if rows and column not in columns:
        raise RecipeError(f"unknown column {column!r}", hint=f"Columns: {', '.join(columns)}.")


def _text(value: Any) -> str:  # noqa: ANN401 - any value of a column
    return "" if value is None else str(value)


def _cell(name: str, value: Any) -> str:  # noqa: ANN401
    if name == "run":
        return str(value)[:_LETTERS]
    return f"{value:.4g}" if isinstance(value, float) else _text(value)
