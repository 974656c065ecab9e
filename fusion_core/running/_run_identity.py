"""What the figures of a run depend on: its recipe, models, tasks and code, nested recipes too."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fusion_core.running import _identity as identity
from fusion_core.running._output import describe_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.planning.planned import Plan
    from fusion_core.weights import WeightSource


class RunIdentities:
    """Tells runs apart by all that their figures depend on.

    What `fuse run` goes by when it shows figures of the base and the experts again goes for a whole
    run here. Pools are asked once each, for runs that share them.
    """

    def __init__(self) -> None:
        self._models: WeakKeyDictionary[ModelPool[Any], identity.Key | None] = WeakKeyDictionary()
        self._tasks: WeakKeyDictionary[TaskPool[Any], identity.Key | None] = WeakKeyDictionary()

    def of(self, plan: Plan, *kinds: type) -> dict[str, Any] | None:
        """Identify a planned run as JSON's data; None if something of it cannot be told.

        `kinds` are classes whose code counts beside the run's own. The machine is part of it, as
        `machine` and `threads`.
        """
        described = describe_run(plan)
        parts = {
            "models": self._identify_models(plan),
            "data": self._identify_tasks(plan),
            "code": identity.identify_code(*kinds, *_kinds_in(plan)),
            **{f"nested {name}": self.of(_merged(inner)) for name, inner in plan.nested.items()},
        }
        return None if described is None or None in parts.values() else {**described, **parts}

    def _identify_models(self, plan: Plan) -> identity.Key | None:
        """Identify a pool's models, and what lies beside them; recipes among them say it all."""
        pool = plan.pool
        if pool not in self._models:
            models = {name: each for name, each in pool.by_name.items() if name not in plan.nested}
            weights = {name: identity.identify_weights(each) for name, each in models.items()}
            beside = {name: identity.digests_of(each) for name, each in pool.beside().items()}
            known = {
                "weights": None if None in weights.values() else weights,
                "assets": identity.digests_of(pool.assets()),
                "beside": beside,
                "options": pool.identity(),
            }
            self._models[pool] = None if None in known.values() else known
        return self._models[pool]

    def _identify_tasks(self, plan: Plan) -> identity.Key | None:
        """Identify what is adapted or measured on; nothing where no task is looked at."""
        tasks = plan.tasks_read
        if tasks is None:
            return {}
        if tasks not in self._tasks:
            known = {name: identity.identify_task(tasks, name) for name in tasks.names}
            self._tasks[tasks] = None if None in known.values() else known
        return self._tasks[tasks]


def _merged(plan: Plan) -> Plan:
    """Return the plan of a recipe that stands for a model: it is merged, and not measured."""
    return replace(plan, options=replace(plan.options, evaluate=False))


def _kinds_in(plan: Plan) -> Iterator[type]:
    """Yield the classes that a run is made of."""
    yield from (type(each.stage) for each in plan.stages)
    yield type(plan.pool)
    for source in plan.pool.by_name.values():
        yield from _kinds_of(source)
    for tasks in (plan.tasks_read, plan.every_task):
        if tasks is not None:
            yield type(tasks)
            yield from (type(tasks[name]) for name in tasks.names)


def _kinds_of(source: WeightSource) -> Iterator[type]:
    yield type(source)
    for inner in source.sources:
        yield from _kinds_of(inner)
