"""The suite of algorithms, run on tiny models of every kind through the pipeline that users run.

An algorithm must be a function of models, options and seed. The checks therefore run it twice, with
experts in another order, on several threads and on tensors cut elsewhere, and compare the bytes.
Further checks pass inputs that it must refuse. No check knows a particular method.
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
from fusion_testing._per_expert import PerExpertChecks
from fusion_testing._refusals import RefusalChecks
from fusion_testing._suite import fail

if TYPE_CHECKING:
    from pathlib import Path

    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.contracts.task_pool import TaskPool
    from fusion_core.plugins.components import Component

MakePool = Callable[..., ModelPool[Any]]

#: Number of experts to merge. From five on, torch's own sums depend on where pieces are cut.
_EXPERTS = 5


class AlgorithmSuite(
    MergeChecks,
    DegenerateChecks,
    DeterminismChecks,
    PairChecks,
    PerExpertChecks,
    RefusalChecks,
    ComponentSuite,
):
    """Checks that every algorithm must pass.

    Besides `spec` and `options`, authors may override two fixtures: `tasks`, and `make_pool`, a
    function with the arguments of `tiny_pool`, for algorithms that need particular models.
    """

    kind: ClassVar[type[Any]] = Algorithm

    @pytest.fixture
    def make_pool(self) -> MakePool:
        """Return the function that makes pools of tiny models."""
        return tiny_pool

    @pytest.fixture
    def experts(self, spec: AlgorithmSpec) -> int:
        """Return the number of experts to merge."""
        return max(spec.min_experts, min(_EXPERTS, spec.max_experts or _EXPERTS))

    @pytest.fixture
    def tasks(self, spec: AlgorithmSpec, experts: int) -> TaskPool[Any] | None:
        """Return one tiny task per expert for algorithms that need tasks."""
        if spec.needs_tasks == "none":
            return None
        names = [chr(ord("a") + number) for number in range(experts)]
        return WatchedTasks(names, labels=spec.needs_tasks == "labeled")

    @pytest.fixture
    def bench(  # noqa: PLR0913, PLR0917 - one per fixture
        self,
        spec: AlgorithmSpec,
        component: Component[Any],
        config: Any,  # noqa: ANN401 - any configuration
        make_pool: MakePool,
        tasks: TaskPool[Any] | None,
        experts: int,
    ) -> Bench:
        """Return the algorithm with everything that a run needs."""
        algorithm = component.load_class()(config)
        algorithm.uses_tasks = spec.needs_tasks != "none"  # the spec may not be installed
        return Bench(spec, algorithm, make_pool, tasks, experts)

    def test_options_make_a_file_and_back(self, bench: Bench, tmp_path: Path) -> None:
        """`from_yaml` reads the options that `to_yaml` wrote."""
        path = tmp_path / "algorithm.yaml"
        bench.algorithm.to_yaml(path)
        again = type(bench.algorithm).from_yaml(path)
        if again.config != bench.algorithm.config:
            fail(
                f"a YAML file changes the options: expected {bench.algorithm.config!r}, got "
                f"{again.config!r}.",
                "Use option types that YAML can store.",
            )
