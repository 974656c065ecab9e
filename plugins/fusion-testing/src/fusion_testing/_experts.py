"""Checks of experts and tasks together: each expert is good at its own task.

What no other check can see shows here: labels that are permuted, heads and experts that are
exchanged, metrics whose direction is wrong.
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

#: Experts that are measured: all of a pool for a suite, the first of a larger one.
_MOST_EXPERTS = 4
_CHUNK = 64
#: Standard errors that a difference must exceed.
_CERTAIN = 2.0
#: What figures may differ by whose examples are not known, of a fraction or of the larger figure.
_SLACK = 0.1


@dataclass(frozen=True)
class Figures:
    """The base and the experts on the experts' tasks."""

    models: Mapping[str, nn.Module]
    #: the figures of each model by its name, and of each task by its own
    rows: Mapping[str, Mapping[str, MetricValues]]
    #: the expert of each task
    owners: Mapping[str, str]


class ExpertChecks(ComponentSuite):
    """What experts and tasks keep together; a part of `TaskPoolSuite`.

    `untrained_experts = "the experts are random"` is the reason why a pool for tests does not keep
    it; the checks are then skipped with this reason.
    """

    #: why the experts of `models` know nothing of their tasks; empty for experts that do
    untrained_experts: ClassVar[str] = ""

    def test_experts_are_good_at_their_own_tasks(
        self, pool: TaskPool[Any], request: pytest.FixtureRequest
    ) -> None:
        """An expert beats chance and the base on its task, and no other expert beats it there."""
        if self.untrained_experts:
            pytest.skip(f"untrained_experts: {self.untrained_experts}")
        figures = _measure(pool, _models_of(request))
        for task in figures.owners:
            _check_rivals(pool, task, figures)
        _check_gains(pool, figures)
        for task, expert in figures.owners.items():
            _check_agreement(pool[task], expert, figures.models[expert])
            _check_again(pool, task, figures)


_DECLARE = "If the experts are untrained, say so: untrained_experts = 'the reason'."


def _models_of(request: pytest.FixtureRequest) -> ModelPool[Any]:
    """Return the pool of models; skips the check where none is known."""
    try:
        models: ModelPool[Any] = request.getfixturevalue("models")
    except pytest.fail.Exception:
        pytest.skip("the suite has no fixture `models`, so there are no experts to measure")
    return models


def _measure(pool: TaskPool[Any], models: ModelPool[Any]) -> Figures:
    """Measure the base and the first experts on the experts' tasks."""
    owners: dict[str, str] = {}
    for expert in models.experts:
        if models.task_of(expert) in pool.names:
            owners.setdefault(models.task_of(expert), expert)
    owners = dict(list(owners.items())[:_MOST_EXPERTS])
    if not owners:
        pytest.skip("no expert of the models was fine-tuned for one of these tasks")
    names = [*(["base"] if models.base is not None else []), *owners.values()]
    live = {name: models.build(models.by_name[name]) for name in names}
    rows = {name: pool.measure(Subject.of(model), list(owners)) for name, model in live.items()}
    return Figures(live, rows, owners)


def _check_rivals(pool: TaskPool[Any], task: str, figures: Figures) -> None:
    """Fail if the base or another expert is better on a task than its own expert."""
    expert = figures.owners[task]
    own = figures.rows[expert][task]
    metric = _metric_of(pool, task, own)
    for rival, row in figures.rows.items():
        if rival != expert and _is_worse(metric, own, row[task]):
            fail(
                f"{task}: its expert {expert!r} has {metric.name} {main_value(own):.4g}, {rival!r} has "
                f"{main_value(row[task]):.4g}, and {_direction(metric)} is better.",
                "Look at the labels of the test examples, at the head and its order of classes, "
                "at `task_of` and the order of experts, and at higher_is_better of the metric. "
                f"{_DECLARE}",
            )


def _check_gains(pool: TaskPool[Any], figures: Figures) -> None:
    """Fail if no expert is better than the base on its own task."""
    if "base" not in figures.rows:
        return
    gains = []
    for task, expert in figures.owners.items():
        own, base = (main_value(figures.rows[name][task]) for name in (expert, "base"))
        metric = _metric_of(pool, task, figures.rows[expert][task])
        gains.append(own - base if metric.higher_is_better else base - own)
    if max(gains) <= 0:
        fail(
            f"no expert of {', '.join(figures.owners.values())} is better than the base on its "
            "own task.",
            f"See that `build` makes the expert from its own weights. {_DECLARE}",
        )


def _check_again(pool: TaskPool[Any], task: str, figures: Figures) -> None:
    """Fail if an expert is measured differently a second time."""
    expert = figures.owners[task]
    before = dict(figures.rows[expert][task])
    again = dict(pool.measure(Subject.of(figures.models[expert]), [task])[task])
    if again != before:
        fail(
            f"{task}: measuring {expert!r} twice gives {before} and {again}.",
            "Return models from `build` in evaluation mode, without random numbers.",
        )


def _metric_of(pool: TaskPool[Any], task: str, metrics: MetricValues) -> Metric:
    name = next(iter(metrics))
    return next((metric for metric in pool[task].metrics if metric.name == name), Metric(name))


def _direction(metric: Metric) -> str:
    return "higher" if metric.higher_is_better else "lower"


def _is_worse(metric: Metric, own: MetricValues, rival: MetricValues) -> bool:
    """Tell whether a figure is worse than another by more than examples that are drawn anew."""
    sign = 1 if metric.higher_is_better else -1
    if isinstance(own, Measured) and isinstance(rival, Measured):
        pairs = zip(own.outcomes, rival.outcomes, strict=False)
        lost = [sign * (theirs - mine) for mine, theirs in pairs]
        return sum(lost) > _CERTAIN * math.sqrt(sum(each**2 for each in lost))
    slack = (
        _SLACK
        if metric.unit == FRACTION
        else _SLACK * max(abs(main_value(own)), abs(main_value(rival)))
    )
    return sign * (main_value(rival) - main_value(own)) > slack


def _check_agreement(task: Task, expert: str, model: nn.Module) -> None:
    """Fail if an expert's predictions and the labels of a split agree no more than by chance."""
    splits = splits_of(task) if isinstance(task, AdaptiveTask) else ()
    for split in (each for each in splits if each is not Split.UNLABELED):
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
        if agreement <= chance + _CERTAIN * error:
            fail(
                f"{task.name}: its expert {expert!r} is right about {agreement:.0%} of "
                f"{len(labels)} {split} examples, and by chance it would be about {chance:.0%}.",
                "Look at the labels of the examples, at the head and its order of classes, and at "
                f"`task_of`. {_DECLARE}",
            )


@torch.no_grad()
def _predict(task: AdaptiveTask, model: nn.Module, batch: Batch) -> Tensor:
    starts = range(0, len(batch), _CHUNK)
    parts = [batch.part(start, start + _CHUNK) for start in starts]
    return torch.cat([task.logits(model, part).argmax(-1).cpu() for part in parts])


def _chance(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of agreements that predictions have with labels in a random order."""
    classes = int(max(predicted.max(), labels.max())) + 1
    counts = [torch.bincount(each, minlength=classes).double() for each in (predicted, labels)]
    return float((counts[0] * counts[1]).sum()) / len(labels) ** 2
