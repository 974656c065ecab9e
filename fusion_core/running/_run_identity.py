"""The identity of a whole run: its recipe, models, tasks and code, including nested recipes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fusion_core.running import _identity as identity
from fusion_core.running._output import describe_run
from fusion_core.weights.source import walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.planning.run_plan import Plan


class RunIdentities:
    """Identifies runs by everything that their scores depend on.

    The rules are those by which `fuse run` reuses the scores of base and experts. Each pool is
    identified once, however many runs share it.
    """

    def __init__(self) -> None:
        self._models: WeakKeyDictionary[ModelPool[Any], identity.Key | None] = WeakKeyDictionary()
        self._tasks: WeakKeyDictionary[TaskPool[Any], identity.Key | None] = WeakKeyDictionary()

    def of(self, plan: Plan, *kinds: type) -> dict[str, Any] | None:
        """Return the identity of a planned run as JSON data, or None if a part has none.

        `kinds` are further classes whose code counts. The keys `machine` and `threads` describe the
        machine.
        """
        description = describe_run(plan)
        parts = {
            "models": self._identify_models(plan),
            "data": self._identify_tasks(plan),
            "code": identity.identify_code(*kinds, *_kinds_in(plan)),
        }
        for name, nested in plan.nested.items():
            merge_only = replace(nested, options=replace(nested.options, evaluate=False))
            parts[f"nested {name}"] = self.of(merge_only)
        return None if description is None or None in parts.values() else {**description, **parts}

    def _identify_models(self, plan: Plan) -> identity.Key | None:
        """Identify a pool's models and side files, except for models that are nested recipes."""
        pool = plan.pool
        if pool not in self._models:
            weights = {
                name: identity.identify_weights(source)
                for name, source in pool.by_name.items()
                if name not in plan.nested
            }
            side_files = {name: identity.file_digests(f) for name, f in pool.side_files().items()}
            parts = {
                "weights": None if None in weights.values() else weights,
                "assets": identity.file_digests(pool.assets()),
                "beside": side_files,
                "options": pool.identity(),
            }
            self._models[pool] = None if None in parts.values() else parts
        return self._models[pool]

    def _identify_tasks(self, plan: Plan) -> identity.Key | None:
        """Identify the tasks that the run adapts to or measures."""
        tasks = plan.used_tasks
        if tasks is None:
            return {}
        if tasks not in self._tasks:
            parts = {name: identity.identify_task(tasks, name) for name in tasks.names}
            self._tasks[tasks] = None if None in parts.values() else parts
        return self._tasks[tasks]


def _kinds_in(plan: Plan) -> Iterator[type]:
    """Yield the classes that take part in a run."""
    yield from (type(planned.stage) for planned in plan.stages)
    yield type(plan.pool)
    for source in plan.pool.by_name.values():
        yield from map(type, walk(source))
    for tasks in (plan.used_tasks, plan.original_tasks):
        if tasks is not None:
            yield type(tasks)
            yield from (type(tasks[name]) for name in tasks.names)
