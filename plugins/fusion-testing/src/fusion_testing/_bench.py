"""Run an algorithm through the pipeline that users run, on tiny pools."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest
from torch import nn

from fusion_core.contracts.algorithm import Algorithm
from fusion_core.contracts.batch import Split
from fusion_core.contracts.context import RunContext
from fusion_core.contracts.flow import Flow
from fusion_core.contracts.stage import Coordinates, Transform
from fusion_core.planning.parts import Part
from fusion_core.planning.pipeline import PlannedStage, apply_stages
from fusion_core.planning.run_options import RunOptions
from fusion_core.recipe.config import AlignmentPolicy
from fusion_core.running.run import run_fusion
from fusion_core.weights import MergedSource, SerialExecutor, WeightSource
from fusion_core.weights.merging.piece import MERGED
from fusion_core.weights.packing import PackedSource
from fusion_testing._suite import fail
from fusion_testing._tasks import TinyTasks
from fusion_testing._tensorwise import Mean, Sum

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from fusion_core.contracts.batch import Batch
    from fusion_core.contracts.model_pool import ModelPool
    from fusion_core.contracts.outline import Outline
    from fusion_core.contracts.run import RunResult
    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_core.contracts.stage import Stage
    from fusion_core.contracts.task_pool import AdaptiveTask, TaskPool
    from fusion_core.weights.merging.kernels import AppliedKernel
    from fusion_core.weights.merging.transforms import TransformedExpert

    Pool = ModelPool[Any]
    State = dict[str, Tensor]


@dataclass(frozen=True)
class Bench:
    """An algorithm with everything that a run needs."""

    spec: AlgorithmSpec
    algorithm: Stage[Any]
    make_pool: Callable[..., Pool]
    tasks: TaskPool[Any] | None
    #: number of experts to merge, unless a check asks for another
    experts: int
    #: the second stage of a pipeline of two
    partner: Stage[Any] | None = None

    @property
    def pipeline(self) -> list[Stage[Any]]:
        """Return the stages to run: the algorithm with its partner or the merge that it needs."""
        if self.spec.stage == "transform":
            return [self.algorithm, self.partner or Sum()]
        if self.spec.stage == "calibrate":
            return [self.partner or Mean(), self.algorithm]
        if isinstance(self.partner, Transform):
            return [self.partner, self.algorithm]
        return [self.algorithm, *([] if self.partner is None else [self.partner])]

    def pool(self, model: str, **changes: Any) -> Pool:  # noqa: ANN401 - what `tiny_pool` takes
        """Return a pool of tiny models."""
        return self.make_pool(model, **{"experts": self.experts, **changes})

    def run(
        self,
        pool: Pool,
        *,
        output: Path | None = None,
        seed: int = 3,
        **options: Any,  # noqa: ANN401
    ) -> RunResult:
        """Run the pipeline."""
        target = None if output is None else {"path": str(output), "shard_size": 1500}
        return run_fusion(
            algorithm=self.pipeline,
            model_pool=pool,
            task_pool=self.tasks,
            seed=seed,
            output=target,
            options=RunOptions(evaluate=False, **{"executor": "serial", **options}),
        )

    def merge(self, pool: Pool, **options: Any) -> State:  # noqa: ANN401 - what `run` takes
        """Run the pipeline and return the merged weights."""
        return self.run(pool, **options).weights.state_dict()

    def lazy(self, pool: Pool, *, on_metrics: Any = None) -> WeightSource:  # noqa: ANN401
        """Return the result of the pipeline without reading it."""
        context = RunContext(tasks=self.tasks, seed=3, on_metrics=on_metrics)
        stages = [PlannedStage(stage, None, (Part(stage),)) for stage in self.pipeline]
        merged = apply_stages(stages, pool.aligned(AlignmentPolicy()), context)
        merged.prepare(SerialExecutor())
        return merged

    def outline(self, pool: Pool) -> Outline:
        """Return the outline of the pipeline's merge."""
        merge = next(stage for stage in self.pipeline if isinstance(stage, Algorithm))
        return merge.outline(pool.aligned(AlignmentPolicy()))

    def skip_unless_tensors_match(self, pool: Pool) -> None:
        """Skip the check if the result has other tensors than the models."""
        if not self.keeps_tensors(pool):
            pytest.skip("the result has other tensors than the models")

    def keeps_tensors(self, pool: Pool) -> bool:
        """Tell whether the result has the same tensors as the models."""
        return self.outline(pool).is_like(pool.reference.infos)

    def task_vectors(self, pool: Pool) -> dict[str, State]:
        """Return the task vectors of every expert after the transform."""
        flow = Flow.of(pool.aligned(AlignmentPolicy()))
        context = RunContext(tasks=self.tasks, seed=3)
        models = self.algorithm.apply(flow, context).models
        return {name: expert.state_dict() for name, expert in models.experts.items()}

    def kernels_on(self, pool: Pool) -> list[AppliedKernel[Any]]:
        """Return the algorithm as the engine applies it; empty if it has no kernel."""
        lazy = self.lazy(pool)
        merged = lazy.matrices if isinstance(lazy, PackedSource) else lazy
        if not isinstance(merged, MergedSource):
            return []
        if self.spec.stage != "transform":
            return [merged]
        back = [merged] if isinstance(self.algorithm, Coordinates) else []
        before = cast("MergedSource", merged.operands.extras[MERGED]) if back else merged
        first = next(iter(before.operands.experts.values()))
        return [cast("TransformedExpert", first).rows, *back]

    def modules(self, pool: Pool) -> dict[str, nn.Module]:
        """Return the live models that a pool was made from."""
        config = pool.config
        named = {"base": getattr(config, "base", None), **getattr(config, "models", {})}
        return {name: model for name, model in named.items() if isinstance(model, nn.Module)}


def with_base(pool: Pool, base: WeightSource | None) -> Pool:
    """Return a pool with another base."""
    clone = copy.copy(pool)
    clone.base = base
    return clone


def with_experts(pool: Pool, experts: Mapping[str, WeightSource]) -> Pool:
    """Return a pool with other experts."""
    clone = copy.copy(pool)
    clone.experts = experts
    return clone


def reverse_experts(pool: Pool) -> Pool:
    """Return a pool with its experts in the opposite order."""
    return with_experts(pool, {name: pool.experts[name] for name in reversed(list(pool.experts))})


def with_sources(pool: Pool, change: Callable[[WeightSource], WeightSource]) -> Pool:
    """Return a pool with a function applied to every source."""
    changed = with_experts(pool, {name: change(expert) for name, expert in pool.experts.items()})
    return changed if pool.base is None else with_base(changed, change(pool.base))


class WatchedTasks(TinyTasks):
    """Tiny tasks that fail a check if an algorithm reads a split that its spec does not allow."""

    def __init__(self, names: Sequence[str], *, labels: bool) -> None:
        super().__init__(names)
        self._labels = labels

    def check(self) -> None:
        """Accept everything: the core calls this before a run, and may read test examples."""

    def __getitem__(self, name: str) -> AdaptiveTask:
        """Return a task that watches `batch`."""
        task = copy.copy(super().__getitem__(name))
        batch, labels = task.batch, self._labels

        def watched_batch(step: int, *, size: int, split: Split, seed: int) -> Batch:
            if split is Split.TEST or (split is Split.TRAIN and not labels):
                fail(
                    f"the algorithm read {split} examples of task {name!r}.",
                    "Use Split.UNLABELED, or declare needs_tasks='labeled' and use Split.TRAIN. "
                    "Algorithms must never read TEST: results are measured on it.",
                )
            return batch(step, size=size, split=split, seed=seed)

        task.batch = watched_batch  # type: ignore[method-assign]
        return task
