"""Experts that score below the base on their own task.

Fine-tuning on a task makes a model better at it. An expert that scores below the base was probably
matched with the wrong task: experts are rotated among the tasks, labels are in another order, or
heads are swapped. Scores normalised by such an expert are misleading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.bootstrap import paired_bootstrap
from fusion_core.contracts.measurements import Measured, Metric, as_json, main_value

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from fusion_core.contracts.measurements import MetricValues, Reference

_SUSPICION = "experts and tasks probably do not belong together"
_FIGURES_ALONE = "the figures alone"
#: The significance level of the paired tests.
_LEVEL = 0.05
#: Scores whose relative difference is smaller than this differ by rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class BelowBase:
    """An expert that scores below the base on its own task, by the task's main metric."""

    task: str
    metric: Metric
    base: float
    expert: float
    #: the paired test that shows it, or "the figures alone" without outcomes of the same examples
    evidence: str

    def __str__(self) -> str:
        """Return the task and both scores: `latin (12.5, base 52.0)`."""
        return (
            f"{self.task} ({self.metric.shown(self.expert)}, base {self.metric.shown(self.base)})"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the JSON data of `report.json`."""
        return {
            "metric": self.metric.name,
            "base": as_json(self.base),
            "expert": as_json(self.expert),
            "evidence": self.evidence,
        }


def find_below_base(
    metrics: Mapping[str, Metric], reference: Reference, within_chance: Collection[str] = ()
) -> Iterator[BelowBase]:
    """Yield the experts that score below the base on their own task, beyond chance.

    `metrics` holds the main metric of each task to check. A paired test decides if base and expert
    keep outcomes of the same examples. Otherwise the scores alone decide, except for tasks in
    `within_chance`. NaN and scores of another metric are never below.
    """
    for task, metric in metrics.items():
        base_metrics = reference.base.get(task, {})
        expert_metrics = reference.experts.get(task, {})
        if any(next(iter(row), None) != metric.name for row in (base_metrics, expert_metrics)):
            continue
        evidence = _find_evidence(metric, base_metrics, expert_metrics)
        if evidence is None or (evidence == _FIGURES_ALONE and task in within_chance):
            continue
        yield BelowBase(
            task, metric, main_value(base_metrics), main_value(expert_metrics), evidence
        )


def find_within_chance(metrics: Mapping[str, Metric], reference: Reference) -> Iterator[str]:
    """Yield the tasks whose expert scores below the base, but not significantly."""
    significant = {expert.task for expert in find_below_base(metrics, reference)}
    lower = find_below_base(metrics, reference.without_outcomes())
    return (expert.task for expert in lower if expert.task not in significant)


def describe_below_base(experts: Sequence[BelowBase]) -> str:
    """Return one line that names the tasks; "" without experts below the base."""
    tasks = ", ".join(expert.task for expert in experts)
    return f"{_SUSPICION}: the expert scores below the base on {tasks}" if tasks else ""


def warn_of_below_base(experts: Sequence[BelowBase]) -> str:
    """Return a warning with scores, evidence and remedy; "" without experts below the base."""
    if not experts:
        return ""
    evidence = ", ".join(dict.fromkeys(expert.evidence for expert in experts))
    return (
        f"{_SUSPICION}: the expert scores below the base on {', '.join(map(str, experts))}, by "
        f"{evidence}. Check which expert belongs to which task, the order of the labels, and the "
        "heads. Scores normalised by these experts would be misleading and are left out."
    )


def _find_evidence(metric: Metric, base: MetricValues, expert: MetricValues) -> str | None:
    """Return what shows that an expert scores below the base; None if nothing does."""
    base_score, expert_score = main_value(base), main_value(expert)
    is_below = expert_score < base_score if metric.higher_is_better else expert_score > base_score
    if not is_below or math.isclose(expert_score, base_score, rel_tol=_ROUNDING):
        return None
    if not (isinstance(base, Measured) and base.pairs_with(expert)):
        return _FIGURES_ALONE
    differences = base.differences(expert)
    if base.is_binary and expert.is_binary:
        test = "exact McNemar"
        p_value = _exact_mcnemar(differences.count(-1.0), differences.count(1.0))
    else:
        test = "paired bootstrap"
        interval, p_value = paired_bootstrap([(differences, base.weights)])
        if interval is None:  # too few examples differ
            return None
    return test if p_value < _LEVEL else None


def _exact_mcnemar(only_base: int, only_expert: int) -> float:
    """Return the two-sided p-value for the numbers of examples that only one model has right.

    If both models are equally good, each of these examples is equally likely to be either one's.
    """
    count, fewer = only_base + only_expert, min(only_base, only_expert)
    term = tail = 1  # binomial coefficients, each from the one before: there may be thousands
    for drawn in range(fewer):
        term = term * (count - drawn) // (drawn + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << count))
