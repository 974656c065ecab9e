"""Reading of a store's rows: every value is checked, since the file may be damaged."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core import Report
from fusion_sweep.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_EXAMPLES = {"half", "other half", "test", "unlabeled"}
#: How a report writes numbers that JSON lacks.
_NOT_FINITE = {"NaN", "Infinity", "-Infinity"}
_LONGEST_CAUSE = 200
_JSON_ERRORS = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class DamagedRowError(ValueError):
    """A row that no store writes; the message names the column."""


@dataclass(frozen=True)
class SweepRecord:
    """A sweep in a store."""

    id: str
    started: str
    #: objectives, axes, seeds, and the examples that options are chosen on
    about: Mapping[str, Any]
    #: the trial that measured the best one on examples that were not used to choose
    tested: str | None = None


def read_trial(row: Sequence[Any]) -> Trial:
    """Return the trial of a row, with its point and seed; raises `DamagedRowError`."""
    trial_id, recipe, measured, report, error, seconds, cpu, finished, point, seed = row
    if (report is None) == (error is None):
        raise DamagedRowError("expected either a report or an error")
    measured = _mapping("measured", measured)
    if measured.get("on") not in _EXAMPLES:
        raise DamagedRowError("measured: the examples are missing or unknown")
    return Trial(
        _text("id", trial_id),
        _recipe(recipe),
        measured,
        None if report is None else _report(report, measured),
        None if error is None else _text("error", error),
        _seconds("seconds", seconds),
        _seconds("cpu", cpu),
        _text("finished", finished),
        _mapping("point", point),
        _whole_number("seed", seed),
    )


def read_sweep(row: Sequence[Any]) -> SweepRecord:
    """Return the sweep of a row; raises `DamagedRowError`."""
    sweep_id, started, about, tested = row
    about = _mapping("about", about)
    names = about.get("objectives")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise DamagedRowError("about: the objectives are missing or invalid")
    if about.get("on") not in _EXAMPLES:
        raise DamagedRowError("about: the examples to choose on are missing or unknown")
    if not isinstance(about.get("over"), dict):
        raise DamagedRowError("about: the axes are missing or invalid")
    tested = None if tested is None else _text("tested", tested)
    return SweepRecord(_text("id", sweep_id), _text("started", started), about, tested)


def _text(column: str, value: object) -> str:
    if not isinstance(value, str):
        raise DamagedRowError(f"{column}: expected text, got {_describe(value)}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DamagedRowError(f"{column}: expected UTF-8")
    return value


def _whole_number(column: str, value: object) -> int:
    if not isinstance(value, int):
        raise DamagedRowError(f"{column}: expected a whole number, got {_describe(value)}")
    return value


def _seconds(column: str, value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DamagedRowError(f"{column}: expected seconds, got {_describe(value)}")
    return value


def _mapping(column: str, value: object) -> Mapping[str, Any]:
    content = _json(column, value, json.loads)
    if not isinstance(content, dict):
        raise DamagedRowError(f"{column}: expected an object, got {_describe(content)}")
    return content


def _json(column: str, value: object, parse: Callable[[str], Any]) -> Any:  # noqa: ANN401 - JSON
    text = _text(column, value)
    try:
        return parse(text)
    except DamagedRowError:
        raise
    except _JSON_ERRORS as error:
        cause = " ".join((str(error) or type(error).__name__).split())[:_LONGEST_CAUSE]
        raise DamagedRowError(f"{column}: cannot read it: {cause}") from error


def _recipe(value: object) -> Mapping[str, Any]:
    recipe = _mapping("recipe", value)
    section = recipe.get("algorithm")
    stages = section if isinstance(section, list) else [section]
    names = [stage.get("name") if isinstance(stage, dict) else None for stage in stages]
    if not names or not all(isinstance(name, str) for name in names):
        raise DamagedRowError("recipe: the algorithm's name is missing")
    return recipe


def _report(value: object, measured: Mapping[str, Any]) -> Report:
    """Return a report whose metrics are numbers; pydantic alone would also accept text."""

    def parse(text: str) -> Report:
        content = json.loads(text)
        report = Report.from_json(content)
        references = content.get("reference") or {}
        for tasks in (content["tasks"], *references.values()):
            for task, metrics in tasks.items():
                for name, number in metrics.items():
                    _check_metric(task, name, number)
        expected = set(measured.get("asked", ()))
        if any(expected - metrics.keys() for metrics in report.tasks.values()):
            raise DamagedRowError("report: a requested metric is missing")
        return report

    return _json("report", value, parse)  # type: ignore[no-any-return]


def _check_metric(task: str, name: str, value: Any) -> None:  # noqa: ANN401 - JSON
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value)) and value not in _NOT_FINITE:
        raise DamagedRowError(f"report: expected a number for {task} {name}, got {value!r}")


def _describe(value: object) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int | float) else type(value).__name__
