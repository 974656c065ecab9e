"""Rows of a store: sweeps, and the runs of one, as mappings of columns to values."""

from __future__ import annotations

import csv
from io import StringIO
from typing import TYPE_CHECKING, Any

from fusion_core.errors import RecipeError
from fusion_sweep.found import Found
from fusion_sweep.objectives import Objective

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fusion_sweep.store import Store
    from fusion_sweep.trial import Trial

Row = dict[str, Any]
_LETTERS = 8
_OWN = {"on", "cpu", "finished"}  # columns that a table does not need


def sweeps(store: Store) -> list[Row]:
    """Return a row a sweep, the newest last."""
    return [
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
        for sweep in store.sweeps()
        for finished, failed, total in [store.counts(sweep.id)]
    ]


def found_in(store: Store, name: str) -> Found:
    """Return what a sweep found so far."""
    sweep = store.sweep(name)
    objectives = [Objective(each) for each in sweep.about["objectives"]]
    tested = None if sweep.tested is None else store.recall(sweep.tested)
    trials = store.trials_of(sweep.id)
    for trial in trials:
        store.check_measured(trial, objectives)
    return Found(sweep.id, objectives, sweep.about["on"], trials, tested)


def runs(store: Store, name: str) -> list[Row]:
    """Return a row a run of a sweep, the best first."""
    return found_in(store, name).rows()


def chosen(rows: list[Row], where: Sequence[str]) -> list[Row]:
    """Return the rows that have the values of all conditions `column=value`."""
    for condition in where:
        column, separator, value = condition.partition("=")
        if not separator:
            raise RecipeError(f"--where {condition!r} is not COLUMN=VALUE")
        _check(rows, column)
        rows = [row for row in rows if _text(row.get(column)) == value]
    return rows


def ordered(rows: list[Row], column: str | None) -> list[Row]:
    """Return rows by a column, numbers from the highest on; those without it come last."""
    if column is None:
        return rows
    _check(rows, column)
    having = [row for row in rows if row.get(column) is not None]
    numbers = all(isinstance(row[column], int | float) for row in having)
    key = (lambda row: -row[column]) if numbers else (lambda row: str(row[column]))
    return [*sorted(having, key=key), *(row for row in rows if row.get(column) is None)]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells: columns in which something stands."""
    columns = [name for name in _columns(rows) if any(_text(row.get(name)) for row in rows)]
    columns = [name for name in columns if name not in _OWN or "sweep" in columns]
    return columns, [[_short(name, row.get(name)) for name in columns] for row in rows]


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV, with a heading."""
    file = StringIO()
    writer = csv.DictWriter(file, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_json(trial: Trial) -> Row:
    """Return all that is known of a run, as JSON's data."""
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


def comments(trial: Trial) -> Iterator[str]:
    """Yield what stands above a run's recipe."""
    yield f"run {trial.id}, {trial.finished}, {trial.seconds:g} s"
    for task, metrics in ({} if trial.report is None else trial.report.tasks).items():
        yield f"{task}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    yield f"measured on: {trial.measured['on']}" if trial.error is None else trial.error
    short = trial.id[:_LETTERS]
    yield f"fuse runs show {short} > {short}.yaml && fuse run {short}.yaml -o merged"


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _check(rows: Sequence[Row], column: str) -> None:
    known = _columns(rows)
    if rows and column not in known:
        raise RecipeError(f"there is no column {column!r}", hint=f"There are: {', '.join(known)}.")


def _text(value: Any) -> str:  # noqa: ANN401 - whatever a column holds
    return "" if value is None else str(value)


def _short(name: str, value: Any) -> str:  # noqa: ANN401
    if name == "run":
        return str(value)[:_LETTERS]
    return f"{value:.4g}" if isinstance(value, float) else _text(value)
