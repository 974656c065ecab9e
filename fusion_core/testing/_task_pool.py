"""The suite of task pools: names, what is measured, and what tasks know of the models.

What algorithms look at, batches and scores, is checked beside it (`_batches.py`).
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fusion_core.contracts.measures import FRACTION, Metric
from fusion_core.contracts.specs import ModelPoolSpec
from fusion_core.contracts.subject import Subject
from fusion_core.contracts.task_pool import TaskPool
from fusion_core.errors import RecipeError
from fusion_core.plugins.manager import load_plugins
from fusion_core.testing._batches import BatchChecks, batch_digests
from fusion_core.testing._guards import no_network, untouched_globals, untouched_modules
from fusion_core.testing._models import tiny_pool
from fusion_core.testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import TaskPoolSpec
    from fusion_core.plugins.components import Component
    from fusion_core.recipe.config import ComponentConfig


class TaskPoolSuite(BatchChecks):
    """What every task pool keeps; `options` make a pool with one or two small tasks.

    `models` is a pool of models that the tasks are for, and `model` its base, live: by default,
    those of the installed model pool whose `default_task_pool` this is. Others override `models`
    or, where tasks need nothing but a live model, `model`.
    """

    kind: ClassVar[type[Any]] = TaskPool

    @pytest.fixture
    def models(self, spec: TaskPoolSpec) -> ModelPool[Any]:
        """Return a pool of models that the tasks are for: tasks are bound to it."""
        for component in load_plugins().components(ModelPoolSpec):
            if component.spec.default_task_pool == spec.name:
                made: ModelPool[Any] = component.load_class()(component.load_config()())
                return made
        return fail(
            f"no installed model pool has {spec.name!r} as its default task pool.",
            "Add a fixture `models` to this class that returns a pool of models for the tasks, or "
            "`model`, which returns a live one.",
        )

    @pytest.fixture
    def model(self, models: ModelPool[Any]) -> nn.Module:
        """Return a live model in evaluation mode that the tasks can look at."""
        return models.build(models.reference)

    @pytest.fixture
    def make(
        self, component: Component[Any], config: ComponentConfig, request: pytest.FixtureRequest
    ) -> Callable[[], Any]:
        """Return what makes the pool, anew each time, bound to the models if it wants to be."""
        made = component.load_class()
        if made.bind is TaskPool.bind:
            return lambda: made(config)
        models = request.getfixturevalue("models")
        return lambda: made(config).bind(models)

    @pytest.fixture
    def pool(self, make: Callable[[], TaskPool[Any]]) -> TaskPool[Any]:
        """Return the pool."""
        return make()

    # --- names ----------------------------------------------------------------------------------

    def test_tasks_are_named_and_in_a_fixed_order(self, make: Callable[[], TaskPool[Any]]) -> None:
        """Names are unique, and each task has the name that it is found by."""
        pool = make()
        names = list(pool.names)
        if not names or len(set(names)) != len(names):
            fail(f"the tasks are {names}.", "Give each task a name of its own.")
        if list(make().names) != names or [task.name for task in pool] != names:
            fail("tasks come in another order, or under other names.", "Keep to `names`.")

    def test_declared_tasks_are_there(self, pool: TaskPool[Any], spec: TaskPoolSpec) -> None:
        """What listings and completion offer is what the pool has."""
        if spec.tasks and not set(pool.names) <= set(spec.tasks):
            fail(f"{set(pool.names) - set(spec.tasks)} is not in the spec's tasks.", "Add it.")

    def test_an_unknown_task_is_refused_with_a_suggestion(self, pool: TaskPool[Any]) -> None:
        """A misspelled name is an error for the user, which brings the right one."""
        right = pool.names[0]
        try:
            pool[f"{right}x"]
        except RecipeError as error:
            if right in str(error):
                return
            fail(f"the error does not suggest {right!r}: {error}", "Offer close matches.")
        except KeyError:
            fail(f"{right + 'x'!r} is a KeyError.", "Raise RecipeError with close matches.")
        fail(f"the pool has a task {right + 'x'!r}.", "Raise RecipeError for unknown names.")

    # --- models ---------------------------------------------------------------------------------

    def test_binding_returns_a_pool_and_changes_none(
        self, component: Component[Any], config: ComponentConfig, request: pytest.FixtureRequest
    ) -> None:
        """`bind` is asked once, and what it was asked of stays as it was."""
        made = component.load_class()
        own = made.bind is not TaskPool.bind
        unbound, models = made(config), request.getfixturevalue("models") if own else tiny_pool()
        before = dict(vars(unbound))
        bound: object = unbound.bind(models)
        if not isinstance(bound, made) or list(bound.names) != list(unbound.names):
            fail(f"`bind` returns {bound!r}.", "Return the pool, or a copy that knows the models.")
        if before.keys() != vars(unbound).keys() or any(
            value is not vars(unbound)[name] for name, value in before.items()
        ):
            fail("`bind` changes the pool.", "Change a copy, copy.copy(self), and return it.")

    def test_an_identity_is_the_same_while_nothing_changes(
        self, make: Callable[[], TaskPool[Any]]
    ) -> None:
        """What is remembered is found again: `identity` is JSON's data, and the same every time."""
        one, other = make(), make()
        for name in one.names:
            try:
                found, again = (json.dumps(each.identity(name)) for each in (one, other))
            except TypeError as error:
                fail(f"{name}: `identity` is not JSON's data: {error}", "Use text and numbers.")
            if found != again:
                fail(
                    f"{name}: `identity` changes: {found}, {again}.", "Name what figures depend on."
                )

    # --- metrics --------------------------------------------------------------------------------

    def test_metrics_keep_their_unit(self, pool: TaskPool[Any], model: nn.Module) -> None:
        """`evaluate` measures what the task declares, in its unit, and the same again."""
        first, second = (pool.measure(Subject.of(model)) for _ in range(2))
        if first != second:
            fail(f"measuring twice gives {first} and {second}.", "Measure the whole test split.")
        for name, metrics in first.items():
            if not metrics:
                fail(f"{name}: no metric.", "Return the main metric first.")
            declared = {each.name: each for each in pool[name].metrics}
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

    def test_it_works_offline_if_it_says_so(
        self, make: Callable[[], TaskPool[Any]], spec: TaskPoolSpec
    ) -> None:
        """A pool declared `offline` opens no connection."""
        if spec.offline:
            with no_network("the pool"):
                batch_digests(make())


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
