"""Greedy soups: average the models that improve the average's score."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fusion_average.config import GreedySoupConfig
from fusion_average.run_average import WEIGHTS, WeightedMean
from fusion_core import Algorithm, Report, RunContext, TaskPool
from fusion_core.commands import Subject
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_core import ModelPool
    from fusion_core.weights import WeightSource


class GreedySoup(Algorithm[GreedySoupConfig]):
    """Average the models that improve the average's score, best first (arXiv:2203.05482, recipe 1).

    Formula: the mean of the chosen experts. Experts are tried in the order of their own score, and
    one stays in the average if the score does not fall. The score is the mean of the tasks' main
    metrics.
    Options: none.
    Data: labels of test examples. The method chooses on one half, and the result is measured on the
    other one. Raises `RecipeError` for a task pool without halves (`TaskPool.halves`).
    Difference: the authors choose on held-out validation data.
    Shapes: any. Cost: two evaluations per expert. A base takes no part.
    """

    config_class = GreedySoupConfig
    _choosing: TaskPool[Any] | None = None

    def tasks(self, pool: TaskPool[Any]) -> TaskPool[Any]:
        """Keep one half of the test examples to choose on; return the other."""
        self._choosing, measured = pool.halves()
        return measured

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Choose experts, and return their lazy mean; raises `RecipeError` for mixed metrics."""
        tasks = self._choosing
        if tasks is None:  # a run by hand has not asked for the half to measure
            if context.tasks is None:
                hint = "Name a task pool with --task-pool."
                raise RecipeError("greedy-soup needs tasks", hint=hint)
            tasks, _ = context.tasks.halves()
        names = [*pool.experts]
        chosen: list[str] = []
        scores = {name: self._score([name], pool, tasks, context) for name in names}
        best = float("-inf")
        for step, name in enumerate(sorted(names, key=lambda name: (-scores[name], name))):
            score = self._score([*chosen, name], pool, tasks, context) if chosen else scores[name]
            if score >= best:
                chosen, best = [*chosen, name], score
            context.log(step, {"score": best, "models": len(chosen)})
        weights = {name: (name in chosen) / len(chosen) for name in names}
        context.save(WEIGHTS, {"schema": 1, "weights": weights})
        return context.merge(pool, WeightedMean(tuple(weights.values())))

    def _score(
        self,
        chosen: Sequence[str],
        pool: ModelPool[Any],
        tasks: TaskPool[Any],
        context: RunContext,
    ) -> float:
        """Measure the mean of some experts; larger is better, and NaN is the worst."""
        weights = tuple((name in chosen) / len(chosen) for name in pool.experts)
        merged = context.merge(pool, WeightedMean(weights))
        dtype = tasks.dtype_for(pool.reference.infos)  # a lazy merge is wider than what is written
        model = pool.build(merged, dtype=dtype, device=context.device).eval()
        measured = tasks.measure(Subject.of(model), progress=context.progress, label="choose")
        declared = {task.name: {metric.name: metric for metric in task.metrics} for task in tasks}
        report = Report(measured, metrics=declared)
        if report.average is None:
            raise RecipeError(
                "greedy-soup needs tasks whose main metrics have one unit and direction",
                hint="Name such tasks with --tasks.",
            )
        first = next(iter(report.main_metrics.values()))
        score = report.average if first.higher_is_better else -report.average
        return float("-inf") if math.isnan(score) else score
