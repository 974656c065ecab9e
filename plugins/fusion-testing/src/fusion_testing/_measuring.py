"""Checks of `evaluate`: figures in their unit, of every test example, whatever the batches are."""

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

#: Examples per pass through a model.
_CHUNK = 64
#: Figures that are the same but for the order of additions.
_SAME = 1e-3
#: Figures of ranks, which change places where scores differ by rounding.
_RANKS = 0.1


class MeasureChecks(ComponentSuite):
    """What `evaluate` and `measure` keep; a part of `TaskPoolSuite`."""

    def test_metrics_keep_their_unit(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`evaluate` measures what the task declares, in its unit, and the same again."""
        first, second = (pool.measure(Subject.of(model)) for _ in range(2))
        if first != second or _outcomes(first) != _outcomes(second):
            fail(f"measuring twice gives {first} and {second}.", "Measure the whole test split.")
        for name, metrics in first.items():
            if not metrics:
                fail(f"{name}: no metric.", "Return the main metric first.")
            declared = {metric.name: metric for metric in pool[name].metrics}
            if lost := declared.keys() - metrics.keys():
                fail(
                    f"{name} declares {', '.join(sorted(lost))}, and does not measure it.",
                    "Give metrics the names that `evaluate` returns.",
                )
            for metric, value in metrics.items():
                _check_value(name, declared.get(metric, Metric(metric)), value)

    def test_measuring_leaves_everything_alone(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """The model keeps its values and modes, the process its state."""
        with untouched_modules("evaluate", {"model": model}):
            pool.measure(Subject.of(model))  # reads its data
            with untouched_globals("evaluate"):
                pool.measure(Subject.of(model))

    def test_some_tasks_are_measured_like_all(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`measure` returns the tasks that are asked for, in order, with the same figures."""
        every = pool.measure(Subject.of(model))
        if list(every) != list(pool.names):
            fail(f"`measure` returns the tasks {list(every)}.", "Keep to `names`.")
        last = pool.names[-1]
        some = pool.measure(Subject.of(model), [last])
        if list(some) != [last] or some[last] != pytest.approx(every[last], rel=_SAME, abs=_SAME):
            fail(
                f"`measure` of the task {last} alone returns {some}, and {every[last]} among all.",
                "Measure just the tasks that are asked for, each by itself.",
            )

    def test_an_accuracy_is_that_of_the_scores(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """An accuracy is the share of all test examples whose highest score is at their label."""
        models = [model, *(_moved(model, seed) for seed in (1, 2))]
        looked_at = False
        for task in pool:
            whole = _classified(task, model)
            if whole is None or not isinstance(task, AdaptiveTask):
                continue
            measured = [task.evaluate(each) for each in models]
            correct = [_correct(task, each, whole) for each in models]
            if _accuracy(measured[0], correct[0]) is None:
                continue
            looked_at = True
            _check_accuracy(task.name, measured[0], correct[0])
            _check_outcomes(task.name, measured, correct)
        if not looked_at:
            pytest.skip("no task has an accuracy of classes, and test examples in one batch")

    def test_figures_do_not_depend_on_the_batch_size(
        self,
        config: ComponentConfig,
        remake: Callable[..., TaskPool[Any]],
        model: nn.Module,
    ) -> None:
        """Figures are means over examples, not over batches: no batch size changes them."""
        own = getattr(config, "batch_size", None)
        if not isinstance(own, int):
            pytest.skip("the pool has no option `batch_size`")
        size = 7 if own != 7 else 5  # noqa: PLR2004 - few splits are multiples of it
        before, after = (
            each.measure(Subject.of(model)) for each in (remake(), remake(batch_size=size))
        )
        for name, metrics in after.items():
            is_mean = isinstance(metrics, Measured) or next(iter(metrics))[:3].lower() == "acc"
            slack = _SAME if is_mean else _RANKS
            if metrics != pytest.approx(before[name], rel=slack, abs=slack):
                fail(
                    f"{name}: {dict(before[name])} with batches of {own}, {dict(metrics)} with "
                    f"batches of {size}.",
                    "Add up over examples and divide once, by their number; measure the last "
                    "batch, too.",
                )

    def test_a_limit_measures_the_first_test_examples(
        self,
        config: ComponentConfig,
        remake: Callable[..., TaskPool[Any]],
        model: nn.Module,
    ) -> None:
        """The option `limit` is obeyed, and `measured_on` says so."""
        if "limit" not in type(config).model_fields:
            pytest.skip("the pool has no option `limit`")
        limit = 3
        whole, some = remake(), remake(limit=limit)
        if not some.measured_on or some.measured_on == whole.measured_on:
            fail(
                f"with a limit, the pool is `measured_on` {some.measured_on!r}.",
                "Set `measured_on` to words for the part of the test examples.",
            )
        every, first = (each.measure(Subject.of(model)) for each in (whole, some))
        for name, metrics in first.items():
            both = every[name]
            if not isinstance(metrics, Measured) or not isinstance(both, Measured):
                continue
            expected = pytest.approx(both.outcomes[:limit], rel=_SAME, abs=_SAME)
            if len(metrics.outcomes) != limit or metrics.outcomes != expected:
                fail(
                    f"{name}: with a limit of {limit}, the outcomes are {metrics.outcomes}, and "
                    f"those of all test examples begin with {both.outcomes[:limit]}.",
                    "Return outcomes in the order of the test examples, and measure the first.",
                )


def _check_value(task: str, metric: Metric, value: float) -> None:
    if not isinstance(value, int | float):
        fail(f"{task}: {metric.name} is a {type(value).__name__}.", "Return float(value).")
    if not math.isfinite(value):
        fail(f"{task}: {metric.name} is {value}.", "Measure numbers on a sound model.")
    if metric.unit == FRACTION and not -1 <= value <= 1:  # a correlation may be negative
        fail(
            f"{task}: {metric.name} is {value}, which is not a fraction.",
            "Return a fraction, or declare the unit: metrics = (Metric(name, unit=...),).",
        )


def _outcomes(figures: dict[str, MetricValues]) -> list[Any]:
    return [getattr(metrics, "outcomes", None) for metrics in figures.values()]


@torch.no_grad()
def _moved(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy with other parameters, which predicts otherwise."""
    generator = torch.Generator().manual_seed(seed)
    clone = copy.deepcopy(model)
    for parameter in clone.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise * parameter.float().abs().mean().to(parameter))
    return clone


def _classified(task: Task, model: nn.Module) -> Examples | None:
    """Return all test examples of a task that puts them into classes; None for any other."""
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
    """Return whether each test example has its highest score at its label."""
    starts = range(0, len(whole), _CHUNK)
    parts = [whole.batch.part(start, start + _CHUNK) for start in starts]
    scores = torch.cat([task.logits(model, part).float().cpu() for part in parts])
    return scores.argmax(-1).eq(cast("Tensor", whole.batch.labels).cpu())


def _accuracy(metrics: MetricValues, correct: Tensor) -> float | None:
    """Return what an accuracy or error rate should be; None for another metric."""
    accuracy = float(correct.double().mean())
    return {"acc": accuracy, "err": 1 - accuracy}.get(next(iter(metrics))[:3].lower())


def _is_as_scored(metrics: MetricValues, correct: Tensor) -> bool:
    expected = _accuracy(metrics, correct)
    return expected is not None and abs(main_value(metrics) - expected) < 1e-6  # noqa: PLR2004 - rounding


def _check_accuracy(name: str, metrics: MetricValues, correct: Tensor) -> None:
    if not _is_as_scored(metrics, correct):
        fail(
            f"{name}: `evaluate` returns {next(iter(metrics))} {main_value(metrics):.4f}; by `logits`, "
            f"it is {_accuracy(metrics, correct):.4f} of the {len(correct)} test examples.",
            "Measure every example that `batch` gives as TEST, with its own label, each once; "
            "return a fraction.",
        )


def _check_outcomes(name: str, measured: Sequence[MetricValues], correct: Sequence[Tensor]) -> None:
    """Fail unless figures are of the models, and outcomes of several models of the same examples.

    A task may fit a head of its own to a model: other models' figures are then not those of
    `logits`, and a few examples cannot tell.
    """
    if len(correct[0]) < ENOUGH:
        return
    if len({main_value(each) for each in measured}) == 1 and _outcomes_differ(correct):
        fail(
            f"{name}: three different models all have {main_value(measured[0]):.4f}.",
            "Measure the model that is given; remember no figure in the task.",
        )
    outcomes = [each.outcomes for each in measured if isinstance(each, Measured) and each.is_binary]
    if len(outcomes) < len(measured) or not all(map(_is_as_scored, measured, correct)):
        return
    expected = Counter(zip(*(each.double().tolist() for each in correct), strict=True))
    turned = Counter(zip(*((1 - each.double()).tolist() for each in correct), strict=True))
    lengths = {len(outcome) for outcome in outcomes}
    if lengths != {len(correct[0])} or Counter(zip(*outcomes, strict=True)) not in (
        expected,
        turned,
    ):
        fail(
            f"{name}: outcomes of different models do not belong to the same examples.",
            "Return one outcome per test example, in the same order for every model.",
        )


def _outcomes_differ(correct: Sequence[Tensor]) -> bool:
    return len({int(each.sum()) for each in correct}) > 1
