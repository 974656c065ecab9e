"""What all methods share that search without labels: their tasks, batches, passes and teachers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fusion_adamerging.config import SearchConfig, UnlabeledConfig
from fusion_adamerging.objective import disagreement_with, entropy_of
from fusion_adapting import Batches, Passes, StateStore, ask_teachers
from fusion_core import Algorithm, Split
from fusion_core.errors import FusionError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fusion_adapting import Objective
    from fusion_core import AdaptiveTask, ModelPool, RunContext, TaskPool

UnlabeledT = TypeVar("UnlabeledT", bound=UnlabeledConfig)
ConfigT = TypeVar("ConfigT", bound=SearchConfig)


class Unlabeled(Generic[UnlabeledT]):
    """The part of a method that says which tasks, and which of their examples, it learns on."""

    config: UnlabeledT

    def tasks(self, pool: TaskPool[Any]) -> TaskPool[Any]:
        """Say what adaptation is to see, and what is measured: halves, or what is seen as well."""
        split = self.config.adapt_split
        if split == "unlabeled":
            return pool
        if split == "test":
            seen = copy.copy(pool)
            seen.transductive = True
            return seen
        try:
            return pool.holdout()
        except RecipeError as error:
            hint = (
                "Adapt on the pool's own unlabeled examples: --set algorithm.adapt_split=unlabeled"
            )
            raise RecipeError(error.message, hint=hint) from error

    def adapted(self, pool: ModelPool[Any], context: RunContext) -> list[AdaptiveTask]:
        """Return the tasks to adapt on; raises `RecipeError` for one that is not there."""
        tasks = context.tasks
        if tasks is None:
            raise FusionError(f"{type(self).__name__} needs tasks with unlabeled data")
        names = [tasks[name].name for name in self.config.tasks or self._own(pool, tasks)]
        return [tasks.adaptive(name) for name in names]

    def batches(self, context: RunContext) -> Batches:
        """Return which of their examples are seen."""
        split = Split.TEST if self.config.adapt_split == "test" else Split.UNLABELED
        return Batches(self.config.batch_size, context.seed, split, self.config.examples)

    @staticmethod
    def _own(pool: ModelPool[Any], tasks: TaskPool[Any]) -> Sequence[str]:
        own = {pool.task_of(expert) for expert in pool.experts}
        return [name for name in tasks.names if name in own] or tasks.names


class Adaptive(Unlabeled[ConfigT], Algorithm[ConfigT]):
    """A method that passes unlabeled examples of tasks through a live model, step by step."""

    def adapted(self, pool: ModelPool[Any], context: RunContext) -> list[AdaptiveTask]:
        """Return the tasks to adapt on.

        Raises `RecipeError` for one that is not there or, where its expert teaches, has none.
        """
        tasks = super().adapted(pool, context)
        if self.config.objective == "teacher":
            for task in tasks:
                pool.expert_of(task.name)  # refused before anything is loaded
        return tasks

    def passes(
        self, model: nn.Module, tasks: Sequence[AdaptiveTask], context: RunContext
    ) -> Passes:
        """Return how batches of these tasks go through a live model."""
        batches = self.batches(context)
        bf16, shared = self.config.precision == "bf16", self.config.shared_pass
        return Passes(model, tasks, batches, context.device, bf16=bf16, shared=shared)

    def objective(
        self, pool: ModelPool[Any], passes: Passes, steps: range, context: RunContext
    ) -> Objective:
        """Return what is minimised; each task's expert says once what it predicts in all steps."""
        if self.config.objective == "entropy":
            return entropy_of
        teachers = ask_teachers(pool, passes, steps, context.progress)
        return disagreement_with(teachers, self.config.temperature)

    def store(self, context: RunContext, **identity: object) -> StateStore:
        """Return where the search keeps how far it is; `identity` says of what it is one."""
        options = self.config.model_dump(mode="json", exclude={"save_every"})
        return StateStore(
            context.state, "search", {"options": options, "seed": context.seed, **identity}
        )
