"""Base classes of the methods that learn from unlabeled examples."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fusion_adapting._checkpointing import checkpoint_layers
from fusion_adapting._config import SearchConfig, UnlabeledConfig
from fusion_adapting._objective import disagreement_with, entropy_of
from fusion_adapting._passes import Batches, Passes
from fusion_adapting._state import StateStore
from fusion_adapting._teachers import ask_teachers
from fusion_core import Algorithm, Split
from fusion_core.errors import FusionError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from fusion_adapting._passes import Objective
    from fusion_core import AdaptiveTask, ModelPool, RunContext, TaskPool

UnlabeledT = TypeVar("UnlabeledT", bound=UnlabeledConfig)
ConfigT = TypeVar("ConfigT", bound=SearchConfig)


class UnlabeledMixin(Generic[UnlabeledT]):
    """Selects the tasks and the examples that a method learns from."""

    config: UnlabeledT

    def tasks(self, pool: TaskPool[Any]) -> TaskPool[Any]:
        """Return the tasks to adapt on and to measure, as `adapt_split` asks.

        With `test`, the copy is marked transductive: it is measured on what adaptation saw. With
        `holdout`, adaptation sees one half of the test examples and the other half is measured.
        Raises `RecipeError` for tasks without halves.
        """
        match self.config.adapt_split:
            case "unlabeled":
                return pool
            case "test":
                transductive = copy.copy(pool)
                transductive.transductive = True
                return transductive
        try:
            return pool.holdout()
        except RecipeError as error:
            raise RecipeError(
                error.message,
                hint="Adapt on the pool's unlabeled examples instead: "
                "--set algorithm.adapt_split=unlabeled",
            ) from error

    def adapted(self, pool: ModelPool[Any], context: RunContext) -> list[AdaptiveTask]:
        """Return the tasks to adapt on; raise `RecipeError` for a task that the pool lacks.

        By default, these are the tasks of the experts. If no task is named after an expert's, all
        tasks of the pool are used.
        """
        tasks = context.tasks
        if tasks is None:
            raise FusionError(f"{type(self).__name__} needs tasks with unlabeled data")
        names: Sequence[str] | None = self.config.tasks
        if not names:
            expert_tasks = {pool.task_of(expert) for expert in pool.experts}
            names = [name for name in tasks.names if name in expert_tasks] or tasks.names
        return [tasks.adaptive(tasks[name].name) for name in names]

    def batches(self, context: RunContext) -> Batches:
        """Return the batches of examples to adapt on, smaller ones for tasks with few examples."""
        split = Split.TEST if self.config.adapt_split == "test" else Split.UNLABELED
        size, examples = self.config.batch_size, self.config.examples
        return Batches(size, context.seed, split, examples)

    def examples_by_task(
        self, tasks: Sequence[AdaptiveTask], context: RunContext
    ) -> dict[str, float]:
        """Return how many different examples of each task a search sees; infinity if unlimited.

        Raises `RecipeError` for a task without any.
        """
        batches = self.batches(context)
        counts = {task.name: batches.available(task) for task in tasks}
        if empty := [name for name, count in counts.items() if not count]:
            raise RecipeError(
                f"no {batches.split} examples to adapt on: {', '.join(empty)}",
                hint="Add at least one example, or name other tasks in algorithm.tasks.",
            )
        return counts


class Adaptive(UnlabeledMixin[ConfigT], Algorithm[ConfigT]):
    """A method that passes unlabeled examples of tasks through a live model, step by step."""

    def adapted(self, pool: ModelPool[Any], context: RunContext) -> list[AdaptiveTask]:
        """Return the tasks to adapt on, and after them those on which the base teaches.

        Raises `RecipeError` for a task that the pool lacks. With the objective `teacher` it also
        raises for a task without an expert, and for a task with two teachers. Warns of experts
        without a task, unless `tasks` names the tasks.
        """
        tasks = super().adapted(pool, context)
        assert context.tasks is not None  # noqa: S101 - or it would have raised
        if self.config.objective == "teacher":
            for task in tasks:
                pool.expert_of(task.name)  # raises before any model is loaded
        if self.config.tasks is None:
            _warn_of_missing_tasks([task.name for task in tasks], pool, context)
        taught = {task.name for task in tasks}
        for name in self.config.retain:
            if name in taught:
                raise RecipeError(
                    f"algorithm.retain: task {name!r} has an expert, which teaches it",
                    hint="Name a task without an expert, such as one of general prompts.",
                )
        taught_by_base = map(context.tasks.adaptive, self.config.retain)
        return [task.with_all_predictions() for task in (*tasks, *taught_by_base)]

    def warn_of_few(self, counts: Mapping[str, float], context: RunContext) -> None:
        """Say that tasks have fewer examples than a batch, and what follows from it."""
        few = [f"{name} {n:.0f}" for name, n in counts.items() if n < self.config.batch_size]
        if few:
            context.warn(
                f"fewer unlabeled examples than batch_size {self.config.batch_size}: "
                f"{', '.join(few)}. Every step takes all of them."
            )

    def passes(
        self, model: nn.Module, tasks: Sequence[AdaptiveTask], context: RunContext
    ) -> Passes:
        """Return the passes of these tasks' batches through a live model.

        Raises `RecipeError` for gradient checkpointing of a model without repeated layers.
        """
        if self.config.gradient_checkpointing and not checkpoint_layers(model):
            raise RecipeError(
                f"algorithm.gradient_checkpointing: {type(model).__name__} has no list of layers "
                "of one class",
                hint="Leave the option out, and lower batch_size or shared_pass to save memory.",
            )
        return Passes(
            model,
            tasks,
            self.batches(context),
            context.device,
            bf16=self.config.precision == "bf16",
            shared=0 if self.config.gradient_checkpointing else self.config.shared_pass,
        )

    def objective(
        self, pool: ModelPool[Any], tasks: Sequence[AdaptiveTask], context: RunContext
    ) -> Objective:
        """Return the objective to minimise.

        With `teacher`, each task's expert predicts the examples of all steps, and the base those
        of the tasks in `retain`. A resumed search asks for all of them again: only then are the
        predictions the same to the bit. Warns of experts whose predictions are all alike.
        """
        if self.config.objective == "entropy":
            return entropy_of
        teachers = ask_teachers(
            pool,
            tasks,
            self.batches(context),
            self.config.steps,
            device=context.device,
            progress=context.progress,
            temperature=self.config.temperature,
            by_base=self.config.retain,
        )
        if alike := [name for name, asked in teachers.items() if asked.are_alike()]:
            context.warn(
                f"the expert predicts the same for all examples to adapt on: {', '.join(alike)}. "
                "The merge will too, even where it knew better. If the examples differ, compare "
                "with a merge that does not adapt on them (option `tasks`)."
            )
        standardise = self.config.standardise
        if standardise is None:
            standardise = any(map(_is_isotropic, context.transforms))
        return disagreement_with(teachers, self.config.temperature, standardise=standardise)

    def store(self, context: RunContext, **identity: object) -> StateStore:
        """Return the store of the search's state; `identity` names what else the state is of."""
        options = self.config.model_dump(mode="json", exclude={"save_every"})
        return StateStore(
            context.state, "search", {"options": options, "seed": context.seed, **identity}
        )


def _warn_of_missing_tasks(tasks: Sequence[str], pool: ModelPool[Any], context: RunContext) -> None:
    """Warn of experts without a task among those to adapt on, and say what follows from it."""
    if missing := [expert for expert in pool.experts if pool.task_of(expert) not in tasks]:
        context.warn(
            f"experts without a task in the task pool: {', '.join(missing)}. Their coefficients "
            f"are learned from other tasks alone: {', '.join(tasks)}. Add the missing tasks, or "
            "name the tasks to adapt on (option `tasks`)."
        )


def _is_isotropic(transform: Mapping[str, Any]) -> bool:
    """Tell from a transform's section whether it gives all directions the same strength."""
    return transform.get("directions") == "isotropic" or transform.get("name") == "isotropise"
