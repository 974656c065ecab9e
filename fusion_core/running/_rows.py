"""The rows of a report: a merge, the base on every task, each task's own expert.

The base and experts of a pool are the same in every run, so what was measured of them is shown
again where all that it depends on is known, and the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fusion_core.contracts.subject import Subject
from fusion_core.errors import BrokenPluginError
from fusion_core.machine.products import with_fast_products
from fusion_core.progress import Progress, noting
from fusion_core.running import _identity as identity
from fusion_core.running._remembered import keep_metrics, recall_metrics
from fusion_core.weights import CheckpointSource, WeightSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from fusion_core.contracts.measures import Metrics
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.running.for_task import TaskOwn

    Row = dict[str, Metrics]
    Change = Callable[[Subject], Subject]


@dataclass
class Rows:
    """What tasks measure of a pool's models, on a device; `fresh` recalls nothing.

    `names` are the tasks of base and experts; all by default.
    """

    pool: ModelPool[Any]
    tasks: TaskPool[Any]
    device: torch.device
    progress: Progress = field(default_factory=Progress)
    fresh: bool = False
    names: Sequence[str] | None = None
    #: the tasks of each row that were measured by an earlier run
    remembered: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def of(
        self,
        source: WeightSource,
        names: Sequence[str] | None = None,
        *,
        label: str | None = None,
        changed: Change | None = None,
    ) -> Row:
        """Measure weights on tasks, showing progress under a label; `changed` is what is measured.

        Raises `BrokenPluginError` naming task and metric for what is not numbers.
        """
        path = source.path if isinstance(source, CheckpointSource) else None
        subject = Subject(
            lambda: with_fast_products(
                self.pool.build(source, dtype=self.tasks.dtype, device=self.device)
            ),
            source,
            path if path and path.is_dir() else None,
            self.device,
        )
        shown: dict[str, Any] = {"label": label, "progress": self.progress} if label else {}
        row = self.tasks.measure(changed(subject) if changed else subject, names, **shown)
        for task, metrics in row.items():
            _check(task, metrics)
        return row

    def of_merge(self, merged: WeightSource, own: TaskOwn | None) -> Row:
        """Measure a merge; each task with its own weights if it has some."""
        if own is None:
            return self.of(merged, label="evaluate merged")
        names = self.tasks.names
        weights = {name: own.weights_of(name, merged) for name in names if name in own.tasks}
        sources = {name: weights.get(name, merged) for name in names}
        changes = {name: partial(own.subject, name) for name in weights}
        rows = self._one_by_one(sources, "merged", changes)
        return {name: each for row in rows for name, each in row.items()}

    def _one_by_one(
        self,
        sources: Mapping[str, WeightSource],
        what: str,
        changes: Mapping[str, Change] = MappingProxyType({}),
    ) -> Iterator[Row]:
        """Measure each task with weights of its own, and changed as some are."""
        track = self.progress.track(f"evaluate {what}", total=len(sources))
        with track as advance, noting(advance):
            for name, source in sources.items():
                yield self.of(source, [name], changed=changes.get(name))
                advance(1, note=name)

    def of_base(self) -> Row:
        """Return the base's row; an empty one where there is none."""
        base = self.pool.base
        if base is None:
            return {}

        def measure(names: list[str]) -> Iterator[Row]:
            yield self.of(base, names, label="evaluate base")

        return self._row("base", dict.fromkeys(self._names, base), measure)

    def of_experts(self) -> Row:
        """Return what each task measures of its own expert, if it has one."""
        own = {self.pool.task_of(expert): source for expert, source in self.pool.experts.items()}
        sources = {name: own[name] for name in self._names if name in own}

        def measure(names: list[str]) -> Iterator[Row]:
            return self._one_by_one({name: sources[name] for name in names}, "experts")

        return self._row("experts", sources, measure)

    @property
    def _names(self) -> Sequence[str]:
        return self.tasks.names if self.names is None else self.names

    def _row(
        self,
        label: str,
        sources: Mapping[str, WeightSource],
        measure: Callable[[list[str]], Iterator[Row]],
    ) -> Row:
        """Recall what is known of a row, have the rest measured, and keep that as it comes."""
        keys = dict(self._keys(sources))
        recalled = (
            {name: recall_metrics(key) for name, key in keys.items()} if not self.fresh else {}
        )
        row = {name: metrics for name, metrics in recalled.items() if metrics}
        self.remembered |= {label: tuple(row)} if row else {}
        missing = [name for name in sources if name not in row]
        for part in measure(missing) if missing else ():
            row |= part
            for name in part.keys() & keys.keys():
                keep_metrics(keys[name], part[name])
        return {name: row[name] for name in sources}

    def _keys(self, sources: Mapping[str, WeightSource]) -> Iterator[tuple[str, identity.Key]]:
        """Yield by task all that its figure depends on, where that is known."""
        models: dict[WeightSource, identity.Key | None] = {}
        for name, source in sources.items():
            if source not in models:
                models[source] = identity.identify_model(self.pool, source)
            task = identity.identify_task(self.tasks, name)
            kinds = type(self.pool), type(self.tasks), type(self.tasks[name])
            code = identity.identify_code(*kinds)
            if models[source] and task and code:
                parts = {"model": models[source], "task": task, "code": code}
                yield name, {**parts, "machine": self._machine}

    @cached_property
    def _machine(self) -> identity.Key:
        return identity.identify_machine(self.device)


def _check(task: str, metrics: Metrics) -> None:
    if not metrics:
        raise BrokenPluginError(f"task {task!r} measured nothing: it returned no metric")
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            found = f"a {type(value).__name__}, not a number of Python's"
            raise BrokenPluginError(f"task {task!r}: its metric {name!r} is {found}")
