"""Experts that score below the base on their own task.

Fine-tuning on a task makes a model better at it. Where it seems to have made the model worse,
experts and tasks probably do not belong together: experts are rotated among the tasks, labels are
in another order, or heads are swapped. A share of such an expert's figure says nothing of a merge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.bootstrap import paired_bootstrap
from fusion_core.contracts.measures import Measured, Metric, Metrics, as_json, main

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_SUSPICION = "experts and tasks probably do not belong together"
#: How it is known: by a paired test, or where the base and the expert keep no outcomes of the same
#: examples, by their figures.
MCNEMAR, BOOTSTRAP, FIGURES_ALONE = "exact McNemar", "paired bootstrap", "the figures alone"
#: A difference is beyond chance where models that are equally good seldom differ by so much.
_LEVEL = 0.05
#: Fewer examples that differ, all in one direction, may be chance: 2 / 2**5 is above 0.05.
_FEWEST = 6
#: Figures that are closer than this fraction differ by rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class BelowBase:
    """An expert that scores below the base on its own task, by the task's main metric."""

    task: str
    metric: Metric
    base: float
    expert: float
    #: how that is known: the name of a paired test, or `FIGURES_ALONE`
    evidence: str

    def __str__(self) -> str:
        """Return the task and both figures: `latin (12.5, base 52.0)`."""
        shown = self.metric.shown
        return f"{self.task} ({shown(self.expert)}, base {shown(self.base)})"

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON's data."""
        figures = {"base": as_json(self.base), "expert": as_json(self.expert)}
        return {"metric": self.metric.name, **figures, "evidence": self.evidence}


def find_below_base(
    metrics: Mapping[str, Metric],
    base: Mapping[str, Metrics],
    experts: Mapping[str, Metrics],
    within_chance: Collection[str] = (),
) -> Iterator[BelowBase]:
    """Yield the tasks, of `metrics`, whose own expert scores below the base beyond chance.

    Where both keep outcomes of the same examples, a paired test decides. Elsewhere the figures
    alone decide, but for the tasks that are known to be `within_chance`. What is not a number, and
    what was measured by another metric, is below nothing.
    """
    for task, metric in metrics.items():
        one, other = base.get(task, {}), experts.get(task, {})
        if not (_is_main(metric, one) and _is_main(metric, other)):
            continue
        evidence = _evidence(metric, one, other)
        if evidence is None or (evidence == FIGURES_ALONE and task in within_chance):
            continue
        yield BelowBase(task, metric, main(one), main(other), evidence)


def describe_below_base(experts: Sequence[BelowBase]) -> str:
    """Say in a line that experts and tasks probably do not belong together; "" for no experts."""
    tasks = ", ".join(expert.task for expert in experts)
    return f"{_SUSPICION}: the expert scores below the base on {tasks}" if tasks else ""


def warn_of_below_base(experts: Sequence[BelowBase]) -> str:
    """Say the same with figures, how they are known, and what to do; "" for no experts."""
    if not experts:
        return ""
    evidence = ", ".join(dict.fromkeys(expert.evidence for expert in experts))
    return (
        f"{_SUSPICION}: the expert scores below the base on {', '.join(map(str, experts))}, by "
        f"{evidence}. Check which expert is for which task, the order of the labels, and the "
        "heads. Shares of these experts' figures say nothing, and none are given."
    )


def find_within_chance(
    metrics: Mapping[str, Metric], base: Mapping[str, Metrics], experts: Mapping[str, Metrics]
) -> Iterator[str]:
    """Yield the tasks whose expert's figure is below the base's, but within chance."""
    below = {expert.task for expert in find_below_base(metrics, base, experts)}
    plain = [{task: dict(figures) for task, figures in row.items()} for row in (base, experts)]
    candidates = find_below_base(metrics, *plain)
    return (expert.task for expert in candidates if expert.task not in below)


def _is_main(metric: Metric, metrics: Metrics) -> bool:
    return next(iter(metrics), None) == metric.name


def _evidence(metric: Metric, base: Metrics, expert: Metrics) -> str | None:
    """Say how it is known that an expert scores below the base; None where it does not."""
    if not _is_below(metric, main(expert), main(base)):
        return None
    if not (isinstance(base, Measured) and base.pairs_with(expert)):
        return FIGURES_ALONE
    differences = base.differences(expert)
    if base.is_binary and expert.is_binary:
        p, test = _mcnemar(differences.count(-1.0), differences.count(1.0)), MCNEMAR
    else:
        p, test = paired_bootstrap([(differences, base.weights)])[1], BOOTSTRAP
    differing = sum(value != 0 for value in differences)
    return test if p < _LEVEL and differing >= _FEWEST else None


def _mcnemar(only_base: int, only_expert: int) -> float:
    """Return the two-sided p-value of so many examples that only one model has right.

    Each of them is as likely to be the one's as the other's, among models that are equally good.
    """
    count, fewer = only_base + only_expert, min(only_base, only_expert)
    term = tail = 1  # binomial coefficients, each from the one before: there may be thousands
    for drawn in range(fewer):
        term = term * (count - drawn) // (drawn + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << count))


def _is_below(metric: Metric, value: float, reference: float) -> bool:
    if math.isclose(value, reference, rel_tol=_ROUNDING):
        return False
    return value < reference if metric.higher_is_better else value > reference
