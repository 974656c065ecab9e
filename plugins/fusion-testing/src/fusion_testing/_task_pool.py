"""The suite of task pools.

It consists of checks of names, batches, splits, inputs, masks, scores, measurements, halves and
identities, and of experts on their own tasks.
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
    """Checks that every task pool must pass; `options` should give one or two small tasks.

    `models` is a pool of models for the tasks, by default the installed model pool that names this
    task pool as its `default_task_pool`. `model` is its base as a live model. Override `models`, or
    only `model` if the tasks need just a live model.
    """

    kind: ClassVar[type[Any]] = TaskPool

    @pytest.fixture
    def models(self, spec: TaskPoolSpec) -> ModelPool[Any]:
        """Return a pool of models for the tasks; tasks are bound to it."""
        for component in load_plugins().components(ModelPoolSpec):
            if component.spec.default_task_pool == spec.name:
                pool: ModelPool[Any] = component.load_class()(component.load_config()())
                return pool
        return fail(
            f"no installed model pool has {spec.name!r} as its default task pool.",
            "Add a fixture `models` to this class that returns a pool of models for the tasks, or "
            "a fixture `model` that returns a live model.",
        )

    @pytest.fixture
    def model(self, models: ModelPool[Any]) -> nn.Module:
        """Return a live model in evaluation mode that the tasks can measure."""
        return models.build(models.reference)

    @pytest.fixture
    def make(
        self, component: Component[Any], config: ComponentConfig, request: pytest.FixtureRequest
    ) -> Callable[[], Any]:
        """Return the function that makes a new pool, bound to the models if it overrides `bind`."""
        pool_class = component.load_class()
        if pool_class.bind is TaskPool.bind:
            return lambda: pool_class(config)
        models = request.getfixturevalue("models")
        return lambda: pool_class(config).bind(models)

    @pytest.fixture
    def remake(
        self,
        component: Component[Any],
        options: Mapping[str, Any],
        request: pytest.FixtureRequest,
    ) -> Callable[..., Any]:
        """Return the function that makes the pool with changed options; raises `RecipeError`."""
        pool_class = component.load_class()

        def remake(**changes: Any) -> Any:  # noqa: ANN401 - options of a pool
            pool = pool_class(validate(component.load_config(), {**options, **changes}))
            if pool_class.bind is TaskPool.bind:
                return pool
            return pool.bind(request.getfixturevalue("models"))

        return remake

    @pytest.fixture
    def pool(self, make: Callable[[], TaskPool[Any]]) -> TaskPool[Any]:
        """Return the pool."""
        return make()

    # --- names ----------------------------------------------------------------------------------

    def test_tasks_are_named_and_in_a_fixed_order(self, make: Callable[[], TaskPool[Any]]) -> None:
        """Names are unique and in a fixed order, and every task has its own name."""
        pool = make()
        names = list(pool.names)
        if not names or len(set(names)) != len(names):
            fail(
                f"expected unique names of tasks, got {names}.",
                "Give every task its own name, and set `names`.",
            )
        if list(make().names) != names or [task.name for task in pool] != names:
            fail(
                "`names` changes between two pools, or differs from the tasks' own names: "
                f"{names}.",
                "Keep names in a tuple or list, and set each task's `name` accordingly.",
            )

    def test_declared_tasks_are_there(
        self,
        pool: TaskPool[Any],
        spec: TaskPoolSpec,
        component: Component[Any],
        options: Mapping[str, Any],
    ) -> None:
        """The pool has exactly the tasks that its spec declares for listings and completion."""
        if not spec.tasks:
            pytest.skip("the spec declares no tasks")
        if undeclared := set(pool.names) - set(spec.tasks):
            fail(
                "the pool has tasks that its spec does not declare: "
                f"{', '.join(sorted(undeclared))}.",
                "Add them to `tasks` of the spec.",
            )
        if "tasks" not in component.load_config().model_fields:
            if missing := set(spec.tasks) - set(pool.names):
                fail(
                    f"the pool lacks tasks that its spec declares: {', '.join(sorted(missing))}.",
                    "Add them to the pool, or remove them from `tasks` of the spec.",
                )
            return
        for name in spec.tasks:
            config = validate(component.load_config(), {**options, "tasks": [name]})
            try:
                names = list(component.load_class()(config).names)
            except RecipeError as error:
                fail(
                    f"the pool refuses the task {name!r}, which its spec declares: {error}",
                    "Add it to the pool, or remove it from `tasks` of the spec.",
                )
            if names != [name]:
                fail(
                    f"with tasks=[{name!r}], expected `names` to be [{name!r}], got {names}.",
                    "Let the option `tasks` choose the tasks and their order.",
                )

    def test_data_that_is_here_passes_the_check(self, pool: TaskPool[Any]) -> None:
        """`check`, which a run calls first, accepts complete data."""
        try:
            pool.check()
        except FusionError as error:
            fail(
                f"`check` refuses the pool: {error}",
                "Raise an error only for missing or unreadable data.",
            )

    def test_an_unknown_task_is_refused_with_a_suggestion(self, pool: TaskPool[Any]) -> None:
        """A misspelled name is a RecipeError that suggests the right one."""
        correct = pool.names[0]
        misspelled = f"{correct}x"
        remedy = "Raise fusion_core.unknown_task, which suggests close names."
        try:
            pool[misspelled]
        except RecipeError as error:
            if correct in str(error):
                return
            fail(f"the error for {misspelled!r} does not suggest {correct!r}: {error}", remedy)
        except KeyError:
            fail(f"expected a RecipeError for the task {misspelled!r}, got a KeyError.", remedy)
        fail(f"expected a RecipeError for the task {misspelled!r}, got a task.", remedy)

    # --- models ---------------------------------------------------------------------------------

    def test_binding_returns_a_pool_and_changes_none(
        self, component: Component[Any], config: ComponentConfig, request: pytest.FixtureRequest
    ) -> None:
        """`bind` returns a pool with the same tasks, and does not change the pool itself.

        A pool whose tasks depend on the models has none before.
        """
        pool_class = component.load_class()
        overrides_bind = pool_class.bind is not TaskPool.bind
        models = request.getfixturevalue("models") if overrides_bind else tiny_pool()
        unbound = pool_class(config)
        before = dict(vars(unbound))
        bound: object = unbound.bind(models)
        if not isinstance(bound, pool_class) or list(unbound.names) not in ([], list(bound.names)):
            fail(
                f"expected a pool with the same tasks from `bind`, got {bound!r}.",
                "Return self, or a copy of it that holds what it needs of the models.",
            )
        if before.keys() != vars(unbound).keys() or any(
            value is not vars(unbound)[name] for name, value in before.items()
        ):
            fail(
                "`bind` changes the pool itself.",
                "Change a copy, copy.copy(self), and return it.",
            )

    def test_it_works_offline_if_it_says_so(
        self, make: Callable[[], TaskPool[Any]], spec: TaskPoolSpec
    ) -> None:
        """A pool declared `offline` opens no network connection."""
        if spec.offline:
            with no_network("the pool"):
                batch_digests(make())
