"""Checks of experts and tasks together: each expert is the best model on its own task.

Only these checks reveal permuted labels, exchanged heads or experts, and metrics with the wrong
direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest
import torch

from fusion_core.contracts.batch import Split
from fusion_core.contracts.measurements import FRACTION, Measured, Metric, main_value
from fusion_core.contracts.subject import Subject
from fusion_core.contracts.task_pool import AdaptiveTask
from fusion_testing._component import ComponentSuite
from fusion_testing._examples import ENOUGH, read, splits_of
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from fusion_core.contracts.batch import Batch
    from fusion_core.contracts.measurements import MetricValues
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import Task, TaskPool

#: Measure at most this many experts of a pool.
_MAX_EXPERTS = 4
_CHUNK = 64
#: A difference counts if it exceeds this many standard errors.
_STANDARD_ERRORS = 2.0
#: Tolerance for scores without outcomes per example: absolute for fractions, else relative.
_SLACK = 0.1


@dataclass(frozen=True)
class Scores:
    """The scores of the base and the experts on the experts' tasks."""

    models: Mapping[str, nn.Module]
    #: model name -> task name -> metrics
    rows: Mapping[str, Mapping[str, MetricValues]]
    #: task name -> name of its expert
    owners: Mapping[str, str]


class ExpertChecks(ComponentSuite):
    """Checks of experts on their own tasks; part of `TaskPoolSuite`.

    If the experts of a test pool are untrained, set `untrained_experts` to the reason. The checks
    are then skipped with that reason.
    """

    #: why the experts of `models` are untrained; empty for trained experts
    untrained_experts: ClassVar[str] = ""

    def test_experts_are_good_at_their_own_tasks(
        self, pool: TaskPool[Any], request: pytest.FixtureRequest
    ) -> None:
        """Every expert beats chance, the base and all other experts on its own task."""
        if self.untrained_experts:
            pytest.skip(f"untrained_experts: {self.untrained_experts}")
        scores = _measure(pool, _models_of(request))
        for task in scores.owners:
            _check_rivals(pool, task, scores)
        _check_gains(pool, scores)
        for task, expert in scores.owners.items():
            _check_agreement(pool[task], expert, scores.models[expert])
            _check_repeatable(pool, task, scores)


_DECLARE = "If the experts are untrained, set untrained_experts = 'the reason' on the suite."


def _models_of(request: pytest.FixtureRequest) -> ModelPool[Any]:
    """Return the pool of models; skip the check if there is none."""
    try:
        models: ModelPool[Any] = request.getfixturevalue("models")
    except pytest.fail.Exception:
        pytest.skip("no experts to measure: the suite has no fixture `models`")
    return models


def _measure(pool: TaskPool[Any], models: ModelPool[Any]) -> Scores:
    """Measure the base and the first experts on the experts' tasks."""
    owners: dict[str, str] = {}
    for expert in models.experts:
        if models.task_of(expert) in pool.names:
            owners.setdefault(models.task_of(expert), expert)
    owners = dict(list(owners.items())[:_MAX_EXPERTS])
    if not owners:
        pytest.skip("no expert belongs to one of these tasks")
    names = [*(["base"] if models.base is not None else []), *owners.values()]
    live = {name: models.build(models.by_name[name]) for name in names}
    rows = {name: pool.measure(Subject.of(model), list(owners)) for name, model in live.items()}
    return Scores(live, rows, owners)


def _check_rivals(pool: TaskPool[Any], task: str, scores: Scores) -> None:
    """Fail if the base or another expert is better on a task than its own expert."""
    expert = scores.owners[task]
    metrics = scores.rows[expert][task]
    metric = _metric_of(pool, task, metrics)
    direction = "higher" if metric.higher_is_better else "lower"
    for rival, row in scores.rows.items():
        if rival != expert and _is_worse(metric, metrics, row[task]):
            fail(
                f"{task}: expected its expert {expert!r} to be best, but {rival!r} is better: "
                f"{metric.name} {main_value(row[task]):.4g} instead of {main_value(metrics):.4g} "
                f"({direction} is better).",
                "Check the labels of the test examples, the head and its order of classes, "
                "`task_of`, the order of experts, and the metric's higher_is_better. "
                f"{_DECLARE}",
            )


def _check_gains(pool: TaskPool[Any], scores: Scores) -> None:
    """Fail if no expert is better than the base on its own task."""
    if "base" not in scores.rows:
        return
    gains = []
    for task, expert in scores.owners.items():
        score, base = (main_value(scores.rows[name][task]) for name in (expert, "base"))
        metric = _metric_of(pool, task, scores.rows[expert][task])
        gains.append(score - base if metric.higher_is_better else base - score)
    if max(gains) <= 0:
        fail(
            f"none of the experts {', '.join(scores.owners.values())} beats the base on its own "
            "task.",
            f"Check that `build` uses the weights that it is given. {_DECLARE}",
        )


def _check_repeatable(pool: TaskPool[Any], task: str, scores: Scores) -> None:
    """Fail if measuring an expert twice gives different scores."""
    expert = scores.owners[task]
    first = dict(scores.rows[expert][task])
    second = dict(pool.measure(Subject.of(scores.models[expert]), [task])[task])
    if second != first:
        fail(
            f"{task}: measuring {expert!r} twice gives {first} and then {second}.",
            "Return models from `build` in evaluation mode, and draw no random numbers in "
            "`forward`.",
        )


def _metric_of(pool: TaskPool[Any], task: str, metrics: MetricValues) -> Metric:
    name = next(iter(metrics))
    return next((metric for metric in pool[task].metrics if metric.name == name), Metric(name))


def _is_worse(metric: Metric, metrics: MetricValues, rival: MetricValues) -> bool:
    """Tell whether a score is worse than a rival's by more than sampling noise."""
    sign = 1 if metric.higher_is_better else -1
    if isinstance(metrics, Measured) and isinstance(rival, Measured):
        pairs = zip(metrics.outcomes, rival.outcomes, strict=False)
        lost = [sign * (theirs - mine) for mine, theirs in pairs]
        return sum(lost) > _STANDARD_ERRORS * math.sqrt(sum(loss**2 for loss in lost))
    score, other = main_value(metrics), main_value(rival)
    slack = _SLACK if metric.unit == FRACTION else _SLACK * max(abs(score), abs(other))
    return sign * (other - score) > slack


def _check_agreement(task: Task, expert: str, model: nn.Module) -> None:
    """Fail if an expert's predictions agree with the labels of a split no better than chance."""
    splits = splits_of(task) if isinstance(task, AdaptiveTask) else ()
    for split in splits:
        if split is Split.UNLABELED:
            continue
        examples = read(cast("AdaptiveTask", task), split)
        labels = examples.batch.labels
        if labels is None or labels.is_floating_point() or labels.dim() != 1:
            continue
        if len(labels) < ENOUGH:
            continue
        predicted = _predict(cast("AdaptiveTask", task), model, examples.batch)
        agreement = float(predicted.eq(labels.cpu()).double().mean())
        chance = _chance(predicted, labels.cpu())
        error = math.sqrt(max(chance * (1 - chance), 1e-9) / len(labels))
        if agreement <= chance + _STANDARD_ERRORS * error:
            fail(
                f"{task.name}: expected its expert {expert!r} to beat chance ({chance:.0%}), but "
                f"it classifies {agreement:.0%} of {len(labels)} {split} examples correctly.",
                "Check the labels of the examples, the head and its order of classes, and "
                f"`task_of`. {_DECLARE}",
            )


@torch.no_grad()
def _predict(task: AdaptiveTask, model: nn.Module, batch: Batch) -> Tensor:
    starts = range(0, len(batch), _CHUNK)
    parts = [batch.part(start, start + _CHUNK) for start in starts]
    return torch.cat([task.logits(model, part).argmax(-1).cpu() for part in parts])


def _chance(predicted: Tensor, labels: Tensor) -> float:
    """Return the expected agreement of predictions with labels in random order."""
    classes = int(max(predicted.max(), labels.max())) + 1
    counts = [torch.bincount(part, minlength=classes).double() for part in (predicted, labels)]
    return float((counts[0] * counts[1]).sum()) / len(labels) ** 2
