"""The rows of a report: the merge, the base on every task, and each task's own expert.

Scores are cached by the identity of everything that they depend on. `fuse run` and `fuse evaluate`
share them: an evaluated directory may be a merge, a base or an expert of an earlier run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.subject import Subject
from fusion_core.errors import BrokenPluginError
from fusion_core.machine.linear_kernels import use_fast_linear_layers
from fusion_core.progress import Progress, show_notes_on
from fusion_core.running import _identity as identity
from fusion_core.running.cache import Score, load_score, store_score
from fusion_core.weights import CheckpointSource, WeightSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import torch

    from fusion_core.contracts.measurements import Metric, MetricValues
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.running.task_overrides import TaskOverrides

    Row = dict[str, MetricValues]
    Adapt = Callable[[Subject], Subject]


@dataclass
class Evaluator:
    """Measures a pool's models on tasks.

    `fresh` ignores cached scores. `names` are the tasks to measure base and experts on, by default
    all.
    """

    pool: ModelPool[Any]
    tasks: TaskPool[Any]
    device: torch.device
    progress: Progress = field(default_factory=Progress)
    fresh: bool = False
    names: Sequence[str] | None = None
    #: the tasks of each row whose scores came from the cache
    remembered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: the metrics that tasks declare, by task and name
    metrics: dict[str, dict[str, Metric]] = field(default_factory=dict)
    #: how tasks were measured, by task
    conditions: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = self.tasks.names if self.names is None else self.names

    def measure(
        self,
        source: WeightSource,
        names: Sequence[str] | None = None,
        *,
        label: str | None = None,
        adapt: Adapt | None = None,
    ) -> Row:
        """Measure weights on tasks. `label` shows progress, `adapt` changes the model first.

        Raises `BrokenPluginError` naming the task and the metric for values that are no numbers.
        """
        path = source.path if isinstance(source, CheckpointSource) else None
        base = self.pool.base if source.is_delta else None
        dtype = self.tasks.dtype_for((base or source).infos)
        subject = Subject(
            lambda: use_fast_linear_layers(
                self.pool.build(source, dtype=dtype, device=self.device)
            ),
            source,
            path if path and path.is_dir() else None,
            self.device,
        )
        options: dict[str, Any] = {"label": label, "progress": self.progress} if label else {}
        row = self.tasks.measure(adapt(subject) if adapt else subject, names, **options)
        for task, metrics in row.items():
            if not metrics or not isinstance(metrics, Mapping):
                got = "no metrics" if not metrics else f"a {type(metrics).__name__}"
                raise BrokenPluginError(
                    f"task {task!r} returned {got}",
                    hint='`evaluate` returns metrics by name: {"accuracy": 0.9}.',
                )
            for name, value in metrics.items():
                if not isinstance(value, int | float):
                    raise BrokenPluginError(
                        f"task {task!r}, metric {name!r}: expected a Python number, "
                        f"got {type(value).__name__}"
                    )
            self._describe(task, self._score(task, metrics))
        return row

    def measure_merge(self, merged: WeightSource, overrides: TaskOverrides | None) -> Row:
        """Measure a merge, with the overrides of the tasks that have some."""
        if overrides is None:
            return self._complete_row(
                "merged",
                dict.fromkeys(self.tasks.names, merged),
                lambda missing: [self.measure(merged, [*missing], label="evaluate merged")],
            )
        if overrides.tasks is None:
            adapt = partial(overrides.subject, "")
            return self.measure(merged, label="evaluate merged", adapt=adapt)
        sources = dict.fromkeys(self.tasks.names, merged)
        adapts = {}
        for name in overrides.tasks:
            if name in sources:
                sources[name] = overrides.weights_of(name, merged)
                adapts[name] = partial(overrides.subject, name)
        rows = self._measure_each(sources, "merged", adapts)
        return {name: metrics for row in rows for name, metrics in row.items()}

    def measure_base(self) -> Row:
        """Measure the base on every task. Without a base, the row is empty."""
        base = self.pool.base
        if base is None:
            return {}
        sources = dict.fromkeys(self._names, base)
        return self._complete_row(
            "base", sources, lambda missing: [self.measure(base, [*missing], label="evaluate base")]
        )

    def measure_experts(self) -> Row:
        """Measure each task's own expert on that task."""
        experts = {self.pool.task_of(name): source for name, source in self.pool.experts.items()}
        sources = {name: experts[name] for name in self._names if name in experts}
        return self._complete_row(
            "experts", sources, lambda missing: self._measure_each(missing, "experts")
        )

    def _measure_each(
        self,
        sources: Mapping[str, WeightSource],
        subject: str,
        adapts: Mapping[str, Adapt] = MappingProxyType({}),
    ) -> Iterator[Row]:
        """Measure each task with weights of its own."""
        track = self.progress.track(f"evaluate {subject}", total=len(sources))
        with track as advance, show_notes_on(advance):
            for name, source in sources.items():
                yield self.measure(source, [name], adapt=adapts.get(name))
                advance(1, note=name)

    def _complete_row(
        self,
        label: str,
        sources: Mapping[str, WeightSource],
        measure: Callable[[Mapping[str, WeightSource]], Iterable[Row]],
    ) -> Row:
        """Load the cached scores of a row, and measure and cache the others one by one."""
        keys = dict(self._keys(sources))
        row: Row = {}
        for name, key in keys.items():
            score = None if self.fresh else load_score(key)
            if score is not None:
                row[name] = score.values
                self._describe(name, score)
        if row:
            self.remembered[label] = tuple(row)
        missing = {name: source for name, source in sources.items() if name not in row}
        for part in measure(missing) if missing else ():
            row |= part
            for name in part.keys() & keys.keys():
                store_score(keys[name], self._score(name, part[name]))
        return {name: row[name] for name in sources}

    def _score(self, name: str, values: MetricValues) -> Score:
        """Return what a task has just measured."""
        task = self.tasks[name]
        return Score(values, task.metrics, task.conditions)

    def _describe(self, name: str, score: Score) -> None:
        """Describe a task in the report, unless a row before has done so."""
        if score.metrics:
            self.metrics.setdefault(name, {metric.name: metric for metric in score.metrics})
        if score.conditions:
            self.conditions.setdefault(name, dict(score.conditions))

    def _keys(self, sources: Mapping[str, WeightSource]) -> Iterator[tuple[str, identity.Key]]:
        """Yield the cache key of every task whose score can be identified."""
        machine = identity.identify_machine(self.device)
        models: dict[int, identity.Key | None] = {}
        for name, source in sources.items():
            if id(source) not in models:
                models[id(source)] = identity.identify_model(self.pool, source)
            model, task = models[id(source)], identity.identify_task(self.tasks, name)
            kinds = type(self.pool), type(self.tasks), type(self.tasks[name])
            code = identity.identify_code(*kinds)
            if model and task and code:
                yield name, {"model": model, "task": task, "code": code, "machine": machine}
