"""The suite of task pools: names, what is measured, and what tasks know of the models.

Its parts are checks of batches, splits, inputs, masks, scores, figures, halves, identities, and of
experts together with their tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fusion_core.contracts.specs import ModelPoolSpec
from fusion_core.contracts.task_pool import TaskPool
from fusion_core.errors import FusionError, RecipeError
from fusion_core.plugins.manager import load_plugins
from fusion_core.recipe.validation import validate
from fusion_testing._batches import BatchChecks
from fusion_testing._examples import batch_digests
from fusion_testing._experts import ExpertChecks
from fusion_testing._guards import no_network
from fusion_testing._halves import HalvesChecks
from fusion_testing._identity import IdentityChecks
from fusion_testing._inputs import InputChecks
from fusion_testing._masks import MaskChecks
from fusion_testing._measuring import MeasureChecks
from fusion_testing._models import tiny_pool
from fusion_testing._scores import ScoreChecks
from fusion_testing._splits import SplitChecks
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.specs import TaskPoolSpec
    from fusion_core.plugins.components import Component
    from fusion_core.recipe.config import ComponentConfig


class TaskPoolSuite(
    BatchChecks,
    SplitChecks,
    InputChecks,
    MaskChecks,
    ScoreChecks,
    MeasureChecks,
    HalvesChecks,
    IdentityChecks,
    ExpertChecks,
):
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
    def remake(
        self,
        component: Component[Any],
        options: Mapping[str, Any],
        request: pytest.FixtureRequest,
    ) -> Callable[..., Any]:
        """Return what makes the pool with some options changed; raises `RecipeError`."""
        made = component.load_class()

        def remake(**changes: Any) -> Any:  # noqa: ANN401 - options of a pool
            pool = made(validate(component.load_config(), {**options, **changes}))
            if made.bind is TaskPool.bind:
                return pool
            return pool.bind(request.getfixturevalue("models"))

        return remake

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

    def test_declared_tasks_are_there(
        self,
        pool: TaskPool[Any],
        spec: TaskPoolSpec,
        component: Component[Any],
        options: Mapping[str, Any],
    ) -> None:
        """What listings and completion offer is what the pool has."""
        if not spec.tasks:
            pytest.skip("the spec declares no tasks")
        if strange := set(pool.names) - set(spec.tasks):
            fail(f"{', '.join(sorted(strange))}: not in the spec's tasks.", "Add it.")
        if "tasks" not in component.load_config().model_fields:
            if missing := set(spec.tasks) - set(pool.names):
                fail(f"{', '.join(sorted(missing))}: in the spec only.", "Add it to `names`.")
            return
        for name in spec.tasks:
            config = validate(component.load_config(), {**options, "tasks": [name]})
            try:
                names = list(component.load_class()(config).names)
            except RecipeError as error:
                fail(f"the declared task {name!r} is refused: {error}", "Add it to the pool.")
            if names != [name]:
                fail(f"with tasks=[{name!r}], `names` are {names}.", "Keep to the option.")

    def test_data_that_is_here_passes_the_check(self, pool: TaskPool[Any]) -> None:
        """`check`, which a run asks before it works, has nothing against sound data."""
        try:
            pool.check()
        except FusionError as error:
            fail(f"`check` refuses the pool: {error}", "Raise only for data that is missing.")

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

    def test_it_works_offline_if_it_says_so(
        self, make: Callable[[], TaskPool[Any]], spec: TaskPoolSpec
    ) -> None:
        """A pool declared `offline` opens no connection."""
        if spec.offline:
            with no_network("the pool"):
                batch_digests(make())
