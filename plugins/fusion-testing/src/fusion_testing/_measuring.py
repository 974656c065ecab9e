"""Checks of `evaluate`: scores in their unit, over every test example, for any batch size."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from fusion_core.contracts.batch import Split
from fusion_core.contracts.measurements import FRACTION, Measured, Metric, main_value
from fusion_core.contracts.subject import Subject
from fusion_core.contracts.task_pool import AdaptiveTask, FeatureTask
from fusion_testing._component import ComponentSuite
from fusion_testing._examples import ENOUGH, Examples, read
from fusion_testing._guards import untouched_globals, untouched_modules
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from fusion_core.contracts.measurements import MetricValues
    from fusion_core.contracts.task_pool import Task, TaskPool
    from fusion_core.recipe.config import ComponentConfig

#: Examples per forward pass.
_CHUNK = 64
#: Tolerance for scores that differ only by the order of additions.
_SAME = 1e-3
#: Tolerance for scores based on ranks, which rounding can exchange.
_RANKS = 0.1


class MeasureChecks(ComponentSuite):
    """Checks of `evaluate` and `measure`; part of `TaskPoolSuite`."""

    def test_metrics_keep_their_unit(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`evaluate` returns the declared metrics in their unit, and is repeatable."""
        first, second = (pool.measure(Subject.of(model)) for _ in range(2))
        if first != second or _outcomes(first) != _outcomes(second):
            fail(
                f"measuring one model twice gives {first} and then {second}.",
                "Measure the whole test split, and draw no random numbers in `evaluate`.",
            )
        for name, metrics in first.items():
            if not metrics:
                fail(
                    f"{name}: `evaluate` returned no metric.",
                    "Return at least one metric, the main one first.",
                )
            declared = {metric.name: metric for metric in pool[name].metrics}
            if missing := declared.keys() - metrics.keys():
                fail(
                    f"{name}: `metrics` declares {', '.join(sorted(missing))}, but `evaluate` does "
                    "not return it.",
                    "Use the same names in `metrics` and in the result of `evaluate`.",
                )
            for metric, value in metrics.items():
                _check_value(name, declared.get(metric, Metric(metric)), value)

    def test_measuring_leaves_everything_alone(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`evaluate` does not change the model or global state."""
        with untouched_modules("evaluate", {"model": model}):
            pool.measure(Subject.of(model))  # the first call may read data
            with untouched_globals("evaluate"):
                pool.measure(Subject.of(model))

    def test_some_tasks_are_measured_like_all(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`measure` of some tasks returns just those, with the same scores."""
        every = pool.measure(Subject.of(model))
        if list(every) != list(pool.names):
            fail(
                f"`measure` returned the tasks {list(every)}, expected {list(pool.names)}.",
                "Return one entry per task, in the order of `names`.",
            )
        last = pool.names[-1]
        some = pool.measure(Subject.of(model), [last])
        if list(some) != [last] or some[last] != pytest.approx(every[last], rel=_SAME, abs=_SAME):
            fail(
                f"`measure` of the task {last} alone returned {some}, expected {every[last]} as in "
                "a measurement of all tasks.",
                "Measure only the requested tasks, each independently of the others.",
            )

    def test_an_accuracy_is_that_of_the_scores(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """An accuracy is the share of test examples whose label has the highest score."""
        models = [model, *(_moved(model, seed) for seed in (1, 2))]
        has_accuracy = False
        for task in pool:
            whole = _classified(task, model)
            if whole is None or not isinstance(task, AdaptiveTask):
                continue
            measured = [task.evaluate(candidate) for candidate in models]
            correct = [_correct(task, candidate, whole) for candidate in models]
            if _accuracy(measured[0], correct[0]) is None:
                continue
            has_accuracy = True
            _check_accuracy(task.name, measured[0], correct[0])
            _check_outcomes(task.name, measured, correct)
        if not has_accuracy:
            pytest.skip("no task measures an accuracy of classes with a test split in one batch")

    def test_figures_do_not_depend_on_the_batch_size(
        self,
        config: ComponentConfig,
        remake: Callable[..., TaskPool[Any]],
        model: nn.Module,
    ) -> None:
        """Scores are means over examples, not over batches, so no batch size changes them."""
        default = getattr(config, "batch_size", None)
        if not isinstance(default, int):
            pytest.skip("the pool has no option `batch_size`")
        size = 7 if default != 7 else 5  # noqa: PLR2004 - divides the size of few splits
        before = remake().measure(Subject.of(model))
        after = remake(batch_size=size).measure(Subject.of(model))
        for name, metrics in after.items():
            is_mean = isinstance(metrics, Measured) or next(iter(metrics))[:3].lower() == "acc"
            slack = _SAME if is_mean else _RANKS
            if metrics != pytest.approx(before[name], rel=slack, abs=slack):
                fail(
                    f"{name}: the scores depend on the batch size: {dict(before[name])} with "
                    f"{default}, {dict(metrics)} with {size}.",
                    "Sum over examples and divide once by their number. Include the last, smaller "
                    "batch.",
                )

    def test_a_limit_measures_the_first_test_examples(
        self,
        config: ComponentConfig,
        remake: Callable[..., TaskPool[Any]],
        model: nn.Module,
    ) -> None:
        """The option `limit` selects the first test examples, and `measured_on` says so."""
        if "limit" not in type(config).model_fields:
            pytest.skip("the pool has no option `limit`")
        limit = 3
        whole, some = remake(), remake(limit=limit)
        if not some.measured_on or some.measured_on == whole.measured_on:
            fail(
                f"with limit={limit}, `measured_on` does not mention the limit: "
                f"{some.measured_on!r}.",
                "Set `measured_on`, e.g. to 'the first 3 test examples'.",
            )
        every, first = (tasks.measure(Subject.of(model)) for tasks in (whole, some))
        for name, metrics in first.items():
            both = every[name]
            if not isinstance(metrics, Measured) or not isinstance(both, Measured):
                continue
            expected = pytest.approx(both.outcomes[:limit], rel=_SAME, abs=_SAME)
            if len(metrics.outcomes) != limit or metrics.outcomes != expected:
                fail(
                    f"{name}: with limit={limit}, expected the outcomes {both.outcomes[:limit]}, "
                    f"got {metrics.outcomes}.",
                    "Measure the first test examples, and return outcomes in their order.",
                )


def _check_value(task: str, metric: Metric, value: float) -> None:
    if not isinstance(value, int | float):
        fail(
            f"{task}: {metric.name} is a {type(value).__name__}, expected a float.",
            "Return float(value).",
        )
    if not math.isfinite(value):
        fail(
            f"{task}: {metric.name} is {value}, expected a finite number.",
            "Check `evaluate` for empty splits and divisions by zero.",
        )
    if metric.unit == FRACTION and not -1 <= value <= 1:  # a correlation may be negative
        fail(
            f"{task}: {metric.name} is {value}, expected a fraction.",
            "Return a fraction, or declare the unit: metrics = (Metric(name, unit=...),).",
        )


def _outcomes(scores: dict[str, MetricValues]) -> list[Any]:
    return [getattr(metrics, "outcomes", None) for metrics in scores.values()]


@torch.no_grad()
def _moved(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy with changed parameters and therefore other predictions."""
    generator = torch.Generator().manual_seed(seed)
    clone = copy.deepcopy(model)
    for parameter in clone.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise * parameter.float().abs().mean().to(parameter))
    return clone


def _classified(task: Task, model: nn.Module) -> Examples | None:
    """Return all test examples of a classification task; None for other tasks."""
    if not isinstance(task, AdaptiveTask):
        return None
    whole = read(task, Split.TEST)
    labels = whole.batch.labels
    if not whole.is_whole or labels is None or labels.dim() != 1 or labels.is_floating_point():
        return None
    with torch.no_grad():
        classes = task.logits(model, whole.batch.part(0, 1)).shape[-1]
    is_vocabulary = not isinstance(task, FeatureTask) and classes > len(set(labels.tolist())) + 1
    return None if is_vocabulary else whole


@torch.no_grad()
def _correct(task: AdaptiveTask, model: nn.Module, whole: Examples) -> Tensor:
    """Tell for each test example whether its label has the highest score."""
    starts = range(0, len(whole), _CHUNK)
    parts = [whole.batch.part(start, start + _CHUNK) for start in starts]
    scores = torch.cat([task.logits(model, part).float().cpu() for part in parts])
    return scores.argmax(-1).eq(cast("Tensor", whole.batch.labels).cpu())


def _accuracy(metrics: MetricValues, correct: Tensor) -> float | None:
    """Return the expected accuracy or error rate; None for other metrics."""
    accuracy = float(correct.double().mean())
    return {"acc": accuracy, "err": 1 - accuracy}.get(next(iter(metrics))[:3].lower())


def _is_as_scored(metrics: MetricValues, correct: Tensor) -> bool:
    expected = _accuracy(metrics, correct)
    return expected is not None and abs(main_value(metrics) - expected) < 1e-6  # noqa: PLR2004 - rounding


def _check_accuracy(name: str, metrics: MetricValues, correct: Tensor) -> None:
    if not _is_as_scored(metrics, correct):
        fail(
            f"{name}: expected {next(iter(metrics))} {_accuracy(metrics, correct):.4f} from the "
            f"`logits` of the {len(correct)} test examples, got {main_value(metrics):.4f} from "
            "`evaluate`.",
            "Measure every TEST example once, with its label, and return a fraction.",
        )


def _check_outcomes(name: str, measured: Sequence[MetricValues], correct: Sequence[Tensor]) -> None:
    """Fail if scores do not depend on the model, or outcomes not on the same examples.

    The second check is skipped if a task fits a head to each model: its scores are then not those
    of `logits`. Splits with few examples are skipped as well.
    """
    if len(correct[0]) < ENOUGH:
        return
    counts = {int(part.sum()) for part in correct}
    if len({main_value(metrics) for metrics in measured}) == 1 and len(counts) > 1:
        fail(
            f"{name}: three different models all score {main_value(measured[0]):.4f}.",
            "Measure the given model, and do not store scores in the task.",
        )
    outcomes = [row.outcomes for row in measured if isinstance(row, Measured) and row.is_binary]
    if len(outcomes) < len(measured) or not all(map(_is_as_scored, measured, correct)):
        return
    expected = Counter(zip(*(part.double().tolist() for part in correct), strict=True))
    inverted = Counter(zip(*((1 - part.double()).tolist() for part in correct), strict=True))
    lengths = {len(outcome) for outcome in outcomes}
    if lengths != {len(correct[0])} or Counter(zip(*outcomes, strict=True)) not in (
        expected,
        inverted,
    ):
        fail(
            f"{name}: the outcomes of different models are not in the same order of examples.",
            "Return one outcome per test example, in the same order for every model.",
        )
