"""Average runs that differ only in the seed, with intervals over seeds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from fusion_core.commands import Intervals, load_recipe
from fusion_report.reading import resolve_paths

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from fusion_core import Metric, MetricValues, Report

#: Keys of a recipe in which runs of one group may differ.
_VARIABLE = ("seed", "output")
_UPPER_TAIL = 0.975  # of a 95 % interval


class Repeated(dict[str, float]):
    """Means of metrics over several runs of one recipe, with the main metric of each run."""

    def __init__(self, runs: Sequence[MetricValues]) -> None:
        """Average the metrics that all runs have."""
        names = [name for name in runs[0] if all(name in run for run in runs)]
        super().__init__({name: sum(run[name] for run in runs) / len(runs) for name in names})
        #: the main metric of each run
        self.by_run = tuple(next(iter(run.values())) for run in runs)


class SeedIntervals(Intervals):
    """Student's 95 % intervals of means over seeds."""

    over = "seeds"
    missing = "no two runs differ only in the seed"

    def of_task(self, metrics: MetricValues) -> tuple[float, float] | None:
        """Return the interval of a task's main metric; None if it is not a mean over runs."""
        return student(metrics.by_run) if isinstance(metrics, Repeated) else None

    def of_average(self, row: Collection[MetricValues]) -> tuple[float, float] | None:
        """Return the interval of the mean over tasks; None if a task is not a mean over runs."""
        by_task = [metrics.by_run for metrics in row if isinstance(metrics, Repeated)]
        if not by_task or len(by_task) < len(row):
            return None
        return student([sum(run) / len(run) for run in zip(*by_task, strict=True)])

    def of_normalised(
        self, row: Collection[tuple[Metric, MetricValues, MetricValues]]
    ) -> tuple[float, float] | None:
        """Return the interval of the mean of score / reference; None as in `of_average`.

        None also where lower is better: the figure is reference / mean score then, and not the mean
        over the runs.
        """
        ratios = []
        for metric, metrics, reference in row:
            if not isinstance(metrics, Repeated) or not metric.higher_is_better:
                return None
            expert = next(iter(reference.values()))
            ratios.append([metric.ratio(value, expert) for value in metrics.by_run])
        return student([_mean_ratio(run) for run in zip(*ratios, strict=True)])


def _mean_ratio(ratios: Sequence[float | None]) -> float:
    """Return the mean of one run's ratios; NaN if one is missing."""
    known = [ratio for ratio in ratios if ratio is not None]
    return sum(known) / len(known) if len(known) == len(ratios) else math.nan


def student(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's interval of a mean; None for one value or for infinite values."""
    if len(values) < 2 or not all(map(math.isfinite, values)):  # noqa: PLR2004 - one value has no spread
        return None
    mean = float(np.mean(values))
    half = float(stats.t.ppf(_UPPER_TAIL, len(values) - 1) * stats.sem(values))
    return mean - half, mean + half


def average_seeds(reports: Mapping[str, Report]) -> dict[str, Report]:
    """Return one report per recipe with means over its runs, named after the first run."""
    averages = {}
    for names in group_by_recipe(reports):
        name = names[0] if len(names) == 1 else f"{names[0]} ({len(names)} seeds)"
        averages[name] = _average([reports[run] for run in names])
    return averages


def group_by_recipe(names: Collection[str]) -> list[list[str]]:
    """Group directories whose resolved recipes differ only in seed and output.

    A directory without a recipe, or with the seed of another run, gets its own group.
    """
    groups: dict[str, dict[Any, str]] = {}
    for name in names:
        path = Path(name, "recipe.yaml")
        recipe = load_recipe(path) if path.is_file() else {"alone": name}
        fixed = {
            key: resolve_paths(value, Path(name))
            for key, value in recipe.items()
            if key not in _VARIABLE
        }
        key = json.dumps(fixed, sort_keys=True, default=str)
        seeds = groups.setdefault(key, {})
        if recipe.get("seed") in seeds:
            groups[f"{key} {name}"] = {None: name}
        else:
            seeds[recipe.get("seed")] = name
    return [list(group.values()) for group in groups.values()]


def _average(runs: Sequence[Report]) -> Report:
    """Return the mean of runs, with the base and experts of the first run.

    Outcomes are dropped, so that nobody confuses intervals over examples with those over seeds.
    """
    first = runs[0]
    tasks = [task for task in first.tasks if all(task in run.tasks for run in runs)]
    means = {task: Repeated([run.tasks[task] for run in runs]) for task in tasks}
    return replace(first.without_outcomes(), tasks=means)
