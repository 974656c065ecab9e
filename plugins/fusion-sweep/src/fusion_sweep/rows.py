"""Rows of a store, checked: whatever a damaged file holds, a trial is whole or refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core import Report
from fusion_sweep.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PLACES = {"half", "other half", "test", "unlabeled"}
#: What a report has in the place of numbers that JSON has not.
_NOT_FINITE = {"NaN", "Infinity", "-Infinity"}
_LONGEST_CAUSE = 200
_OF_JSON = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class DamagedRowError(ValueError):
    """A row does not hold what a store writes; the message names the column."""


@dataclass(frozen=True)
class Swept:
    """A sweep as it was asked for."""

    id: str
    started: str
    #: objectives, axes, seeds, and what options are chosen on
    about: Mapping[str, Any]
    #: the trial that measured the best one on examples that chose nothing
    tested: str | None = None


def trial_of(row: Sequence[Any]) -> Trial:
    """Return the trial of a row, with its point and seed; raises `DamagedRowError`."""
    name, recipe, measured, report, error, seconds, cpu, finished, point, seed = row
    if (report is None) == (error is None):
        raise DamagedRowError("expected either a report or an error")
    how = _mapping("measured", measured)
    if how.get("on") not in _PLACES:
        raise DamagedRowError("measured: it does not say on what")
    return Trial(
        _text("id", name),
        _recipe(recipe),
        how,
        None if report is None else _report(report, how),
        None if error is None else _text("error", error),
        _seconds("seconds", seconds),
        _seconds("cpu", cpu),
        _text("finished", finished),
        _mapping("point", point),
        _whole("seed", seed),
    )


def swept_of(row: Sequence[Any]) -> Swept:
    """Return the sweep of a row; raises `DamagedRowError`."""
    name, started, about, tested = row
    said = _mapping("about", about)
    given = said.get("objectives")
    objectives = given if isinstance(given, list) else []
    if not objectives or not all(isinstance(name, str) for name in objectives):
        raise DamagedRowError("about: it names no objectives")
    if said.get("on") not in _PLACES:
        raise DamagedRowError("about: it does not say on what options are chosen")
    if not isinstance(said.get("over"), dict):
        raise DamagedRowError("about: it does not say what is swept over")
    own = None if tested is None else _text("tested", tested)
    return Swept(_text("id", name), _text("started", started), said, own)


def _text(column: str, value: object) -> str:
    if not isinstance(value, str):
        raise DamagedRowError(f"{column}: expected text, got {_kind(value)}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DamagedRowError(f"{column}: it is not UTF-8")
    return value


def _whole(column: str, value: object) -> int:
    if not isinstance(value, int):
        raise DamagedRowError(f"{column}: expected a whole number, got {_kind(value)}")
    return value


def _seconds(column: str, value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DamagedRowError(f"{column}: expected seconds, got {_kind(value)}")
    return value


def _mapping(column: str, value: object) -> Mapping[str, Any]:
    content = _json(column, value, json.loads)
    if not isinstance(content, dict):
        raise DamagedRowError(f"{column}: expected an object, got {_kind(content)}")
    return content


def _json(column: str, value: object, read: Callable[[str], Any]) -> Any:  # noqa: ANN401 - JSON
    text = _text(column, value)
    try:
        return read(text)
    except DamagedRowError:
        raise
    except _OF_JSON as error:
        raise DamagedRowError(f"{column}: it cannot be read: {_cause(error)}") from error


def _recipe(value: object) -> Mapping[str, Any]:
    recipe = _mapping("recipe", value)
    given = recipe.get("algorithm")
    stages = given if isinstance(given, list) else [given]
    names = [stage.get("name") if isinstance(stage, dict) else None for stage in stages]
    if not names or not all(isinstance(name, str) for name in names):
        raise DamagedRowError("recipe: it names no algorithm")
    return recipe


def _report(value: object, measured: Mapping[str, Any]) -> Report:
    """Return a report whose figures are numbers; pydantic alone would also take text for them."""

    def read(text: str) -> Report:
        content = json.loads(text)
        report = Report.from_json(content)
        references = content.get("reference") or {}
        for tasks in (content["tasks"], *references.values()):
            _check_figures(tasks)
        asked = set(measured.get("asked", ()))
        if any(asked - figures.keys() for figures in report.tasks.values()):
            raise DamagedRowError("report: a figure that was asked for is missing")
        return report

    return _json("report", value, read)  # type: ignore[no-any-return]


def _check_figures(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    for task, figures in tasks.items():
        for name, figure in figures.items():
            is_number = isinstance(figure, int | float) and not isinstance(figure, bool)
            if not (is_number and math.isfinite(figure)) and figure not in _NOT_FINITE:
                raise DamagedRowError(f"report: {task} {name} is not a number: {figure!r}")


def _kind(value: object) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int | float) else type(value).__name__


def _cause(error: BaseException) -> str:
    """Return in one line why content is refused."""
    return " ".join((str(error) or type(error).__name__).split())[:_LONGEST_CAUSE]
