"""The suite of algorithms: run on tiny models as a user would run them, on every kind of model.

An algorithm is a function of models, options and seed. So the checks run it twice, in other
orders, on other threads and cut in other places, and compare bytes; and they give it what it must
refuse. Nothing here knows a method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from fusion_core.contracts.algorithm import Algorithm
from fusion_core.contracts.model_pool import ModelPool
from fusion_testing._bench import Bench, WatchedTasks
from fusion_testing._component import ComponentSuite
from fusion_testing._degenerate import DegenerateChecks
from fusion_testing._determinism import DeterminismChecks
from fusion_testing._merging import MergeChecks
from fusion_testing._models import tiny_pool
from fusion_testing._pairs import PairChecks
from fusion_testing._refusals import RefusalChecks
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.plugins.components import Component

MakePool = Callable[..., ModelPool[Any]]

#: Most experts that are merged here: from five on, torch's own sums depend on where they are cut.
_EXPERTS = 5


class AlgorithmSuite(
    MergeChecks, DegenerateChecks, DeterminismChecks, PairChecks, RefusalChecks, ComponentSuite
):
    """What every algorithm keeps.

    Fixtures that an author may override beside `spec` and `options`: `make_pool`, a function with
    the arguments of `tiny_pool`, for algorithms that need models of their own, and `tasks`.
    """

    kind: ClassVar[type[Any]] = Algorithm

    @pytest.fixture
    def make_pool(self) -> MakePool:
        """Return what makes pools of tiny models."""
        return tiny_pool

    @pytest.fixture
    def experts(self, spec: AlgorithmSpec) -> int:
        """Return how many experts are merged."""
        return max(spec.min_experts, min(_EXPERTS, spec.max_experts or _EXPERTS))

    @pytest.fixture
    def tasks(self, spec: AlgorithmSpec, experts: int) -> TaskPool[Any] | None:
        """Return a tiny task an expert, for algorithms that look at tasks."""
        if spec.needs_tasks == "none":
            return None
        names = [chr(ord("a") + number) for number in range(experts)]
        return WatchedTasks(names, labels=spec.needs_tasks == "labeled")

    @pytest.fixture
    def bench(  # noqa: PLR0913, PLR0917 - the fixtures that it gathers
        self,
        spec: AlgorithmSpec,
        component: Component[Any],
        config: Any,  # noqa: ANN401 - the algorithm's own
        make_pool: MakePool,
        tasks: TaskPool[Any] | None,
        experts: int,
    ) -> Bench:
        """Return the algorithm with everything that a run of it needs."""
        algorithm = component.load_class()(config)
        algorithm.uses_tasks = spec.needs_tasks != "none"  # the spec may not be installed
        return Bench(spec, algorithm, make_pool, tasks, experts)

    def test_options_make_a_file_and_back(self, bench: Bench, tmp_path: Path) -> None:
        """`to_yaml` and `from_yaml` are each other's inverse."""
        path = tmp_path / "algorithm.yaml"
        bench.algorithm.to_yaml(path)
        again = type(bench.algorithm).from_yaml(path)
        if again.config != bench.algorithm.config:
            fail(
                f"{again.config!r} came back for {bench.algorithm.config!r}.",
                "Use types for options that YAML can hold.",
            )
