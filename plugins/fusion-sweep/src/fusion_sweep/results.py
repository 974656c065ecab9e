"""What a sweep found, as data: its trials, those of one point together, and which are best."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from fusion_core.errors import FusionError
from fusion_sweep.axes import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from fusion_core import Metric, Report
    from fusion_sweep.axes import Point
    from fusion_sweep.objectives import Objective
    from fusion_sweep.trial import Trial


@dataclass(frozen=True)
class Group:
    """The finished trials of one point, one a seed."""

    trials: Sequence[Trial]
    objectives: Sequence[Objective]

    @property
    def point(self) -> Point:
        """What is swept over."""
        return self.trials[0].point

    @cached_property
    def scores(self) -> tuple[float, ...]:
        """The mean over seeds of each objective, negative where lower is better."""
        return tuple(
            fmean(objective.score(r) for r in self._reports) for objective in self.objectives
        )

    def mean(self, objective: Objective) -> float:
        """Return the mean over seeds."""
        return fmean(objective.value(report) for report in self._reports)

    def deviation(self, objective: Objective) -> float | None:
        """Return the standard deviation over seeds, None for one seed."""
        values = [objective.value(report) for report in self._reports]
        return stdev(values) if len(values) > 1 else None

    def metric(self, objective: Objective) -> Metric:
        """Return what is known of an objective."""
        return objective.metric(self._reports[0])

    def is_beaten_by(self, other: Group) -> bool:
        """Tell whether another is nowhere worse, and somewhere better."""
        pairs = list(zip(self.scores, other.scores, strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    @cached_property
    def _reports(self) -> list[Report]:
        return [trial.report for trial in self.trials if trial.report is not None]


@dataclass(frozen=True)
class Results:
    """The trials of a sweep so far: those that are finished, and that failed."""

    id: str
    objectives: Sequence[Objective]
    #: what options were chosen on: `half`, `test` or `unlabeled`
    on: str
    trials: Sequence[Trial]
    #: the best trial, measured on examples that chose nothing
    tested: Trial | None = None
    #: the directories of the best models, where they were asked for
    written: Sequence[Path] = ()

    @cached_property
    def groups(self) -> list[Group]:
        """Trials of one point together, the best first: by the first objective, then the next."""
        finished = sorted(self.finished, key=lambda each: (key_of(each.point), each.seed))
        made = [
            Group(list(each), self.objectives)
            for _, each in groupby(finished, key=lambda each: key_of(each.point))
        ]
        return sorted(made, key=lambda each: each.scores, reverse=True)

    @property
    def finished(self) -> list[Trial]:
        """The trials that were measured."""
        return [trial for trial in self.trials if trial.report is not None]

    @property
    def failed(self) -> list[Trial]:
        """The trials that failed."""
        return [trial for trial in self.trials if trial.error is not None]

    @property
    def front(self) -> list[Group]:
        """The points that no other beats in every objective."""
        found: list[Group] = []
        for group in self.groups:  # whoever beats it comes before it
            if not any(group.is_beaten_by(other) for other in found):
                found.append(group)
        return found

    def best(self) -> Trial:
        """Return the first trial of the best point; raises `FusionError` if none is finished."""
        return self.ranked()[0].trials[0]

    def ranked(self) -> list[Group]:
        """Return `groups`; raises `FusionError` if none is finished."""
        if not self.groups:
            raise FusionError("no trial of this sweep is finished", hint="`failed` says why.")
        return self.groups

    def rows(self) -> list[dict[str, Any]]:
        """Return a row a trial, the best first: point, seed, objectives, every task's metrics."""
        ordered = [trial for group in self.groups for trial in group.trials]
        return [dict(self._row(each)) for each in (*ordered, *self.failed)]

    def _row(self, trial: Trial) -> Iterator[tuple[str, Any]]:
        yield from {"run": trial.id, "algorithm": trial.algorithm, **trial.point}.items()
        yield "seed", trial.seed
        if trial.report is not None:
            yield from (
                (objective.name, objective.value(trial.report)) for objective in self.objectives
            )
            yield from _figures(trial.report.tasks)
        yield from {"on": self.on, "seconds": trial.seconds, "cpu": trial.cpu}.items()
        yield from {"finished": trial.finished, "error": trial.error}.items()


def _figures(tasks: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, float]]:
    for task, metrics in tasks.items():
        yield from ((f"{task}.{name}", value) for name, value in metrics.items())
