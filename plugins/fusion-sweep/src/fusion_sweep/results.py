"""The result of a sweep: its trials, grouped by point and ranked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from fusion_core.commands import import_optional
from fusion_core.errors import FusionError
from fusion_sweep.axes import point_key
from fusion_sweep.formatting import format_html
from fusion_sweep.plots import plot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from fusion_core import Metric, Report
    from fusion_sweep.axes import Point
    from fusion_sweep.objectives import Objective
    from fusion_sweep.trial import Trial

#: Rows of the table in a notebook.
_HTML_ROWS = 10


@dataclass(frozen=True)
class Group:
    """The finished trials of one point, one per seed."""

    trials: Sequence[Trial]
    objectives: Sequence[Objective]
    #: whether no seed failed; other points score lowest, since their means leave something out
    is_complete: bool = True

    @property
    def point(self) -> Point:
        """The values of the axes."""
        return self.trials[0].point

    @cached_property
    def scores(self) -> tuple[float, ...]:
        """The mean over seeds of each objective, negated if lower is better."""
        if not self.is_complete:
            return (-math.inf,) * len(self.objectives)
        return tuple(
            fmean(objective.score(report) for report in self._reports)
            for objective in self.objectives
        )

    def mean(self, objective: Objective) -> float:
        """Return the mean over seeds."""
        return fmean(objective.value(report) for report in self._reports)

    def deviation(self, objective: Objective) -> float | None:
        """Return the standard deviation over seeds; None for one seed, NaN if one is not finite."""
        values = [objective.value(report) for report in self._reports]
        if len(values) == 1:
            return None
        return stdev(values) if all(map(math.isfinite, values)) else math.nan

    def metric(self, objective: Objective) -> Metric:
        """Return the unit and direction of an objective."""
        return objective.metric(self._reports[0])

    def is_beaten_by(self, other: Group) -> bool:
        """Tell whether another group is better in some objective and worse in none."""
        pairs = list(zip(self.scores, other.scores, strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    @cached_property
    def _reports(self) -> list[Report]:
        return [trial.report for trial in self.trials if trial.report is not None]


def _order(point: Point) -> tuple[Any, ...]:
    """Return a sort key of points in which numbers are in the order of their values."""
    numbers = tuple(
        (axis, value if isinstance(value, int | float) else math.inf)
        for axis, value in sorted(point.items())
    )
    return numbers, point_key(point)


@dataclass(frozen=True)
class SweepResult:
    """The finished and failed trials of a sweep so far; a notebook displays it as a table."""

    id: str
    objectives: Sequence[Objective]
    #: the examples that options are chosen on: `half`, `test` or `unlabeled`
    on: str
    trials: Sequence[Trial]
    #: the best trial, measured on examples that were not used to choose
    tested: Trial | None = None
    #: the directories of the best models, if they were written
    written: Sequence[Path] = ()

    @cached_property
    def groups(self) -> list[Group]:
        """The finished trials by point, the best first: by the first objective, then the next."""
        finished = sorted(self.finished, key=lambda trial: (_order(trial.point), trial.seed))
        failed = {point_key(trial.point) for trial in self.failed}
        groups = [
            Group(list(trials), self.objectives, is_complete=key not in failed)
            for key, trials in groupby(finished, key=lambda trial: point_key(trial.point))
        ]
        return sorted(groups, key=lambda group: group.scores, reverse=True)

    @property
    def finished(self) -> list[Trial]:
        """The trials that have a report."""
        return [trial for trial in self.trials if trial.report is not None]

    @property
    def failed(self) -> list[Trial]:
        """The trials that failed."""
        return [trial for trial in self.trials if trial.error is not None]

    @property
    def front(self) -> list[Group]:
        """The Pareto front: the points that no other point beats."""
        front: list[Group] = []
        for group in self.groups:  # a group that beats another precedes it
            if not any(group.is_beaten_by(other) for other in front):
                front.append(group)
        return front

    def best(self) -> Trial:
        """Return the first trial of the best point; raises `FusionError` if none is finished."""
        return self.ranked()[0].trials[0]

    def ranked(self) -> list[Group]:
        """Return `groups`; raises `FusionError` if none is finished."""
        if not self.groups:
            raise FusionError("no trial of this sweep is finished", hint="See `failed` for why.")
        return self.groups

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per trial, the best first: point, seed, objectives, tasks' metrics."""
        ranked = [trial for group in self.groups for trial in group.trials]
        return [self._row(trial) for trial in (*ranked, *self.failed)]

    def _row(self, trial: Trial) -> dict[str, Any]:
        row = {"run": trial.id, "algorithm": trial.algorithm, **trial.point, "seed": trial.seed}
        if trial.report is not None:
            for objective in self.objectives:
                row[objective.name] = objective.value(trial.report)
            for task, metrics in trial.report.tasks.items():
                row |= {f"{task}.{name}": value for name, value in metrics.items()}
        return row | {
            "on": self.on,
            "seconds": trial.seconds,
            "cpu": trial.cpu,
            "finished": trial.finished,
            "error": trial.error,
        }

    def as_json(self) -> dict[str, Any]:
        """Return the data that `fuse sweep --json` prints."""
        tested = None
        if self.tested is not None and self.tested.report is not None:
            tested = {
                "run": self.tested.id,
                "on": self.tested.measured["on"],
                "average": self.tested.report.average,
                "tasks": self.tested.report.tasks,
            }
        return {
            "sweep": self.id,
            "on": self.on,
            "runs": self.rows(),
            "tested": tested,
            "written": [str(path) for path in self.written],
        }

    @property
    def lower_is_better(self) -> set[str]:
        """The columns of `rows` with metrics for which lower is better."""
        columns = set()
        for report in (trial.report for trial in self.trials if trial.report is not None):
            metrics = {objective.name: objective.metric(report) for objective in self.objectives}
            for task, values in report.tasks.items():
                metrics |= {f"{task}.{name}": report.metric(task, name) for name in values}
            columns |= {name for name, metric in metrics.items() if not metric.higher_is_better}
        return columns

    def to_dataframe(self) -> Any:  # noqa: ANN401 - a class of pandas
        """Return `rows` as a pandas data frame; raises `FusionError` without pandas."""
        return import_optional("pandas", "to_dataframe").DataFrame(self.rows())

    def plot(self) -> Figure:
        """Draw the first objective over the options, with matplotlib.

        One option gives a line with standard deviations over seeds, and two a map. Otherwise each
        option has a panel of dots. Raises `FusionError` without matplotlib, or if no trial is
        finished.
        """
        return plot(self.ranked())

    def _repr_html_(self) -> str:
        return format_html(self, _HTML_ROWS)
