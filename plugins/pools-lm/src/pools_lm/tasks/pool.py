"""The task pools of texts: tasks by name, bound to the models' tokenizer."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fusion_core import ComponentConfig, TaskPool, choose_tasks, unknown_task
from pools_lm.tasks.choice import ChoiceTask
from pools_lm.tasks.config import (
    ChoiceTasksConfig,
    GenerateTasksConfig,
    LanguageTasksConfig,
    PerplexityTasksConfig,
)
from pools_lm.tasks.generate import GenerateTask
from pools_lm.tasks.head import HeadTask
from pools_lm.tasks.lines import identities, on_hub
from pools_lm.tasks.perplexity import PerplexityTask
from pools_lm.tasks.prompts import Prompts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core import ModelPool
    from fusion_core.hub import Wanted
    from pools_lm.tasks.task import LanguageTask

_KINDS: Mapping[str, type[LanguageTask[Any]]] = {
    "perplexity": PerplexityTask,
    "choice": ChoiceTask,
    "generate": GenerateTask,
    "head": HeadTask,
}


class LanguageTasks(TaskPool[ComponentConfig]):
    """Tasks on texts for models that go on with a text, or answer it with another.

    UNLABELED are a task's `unlabeled` lines or, where it has none, its test lines without answers:
    adapting on them is transductive. A pool that brings its own data passes a `LanguageTasksConfig`
    to this constructor and then sets `config` to its own options. Raises `RecipeError` for unknown
    tasks.
    """

    config_class: ClassVar[type[ComponentConfig]] = LanguageTasksConfig

    def __init__(self, config: LanguageTasksConfig) -> None:
        super().__init__(config)
        self.names = choose_tasks(config.tasks, list(config.datasets), "task_pool.tasks")
        chosen = {name: config.datasets[name] for name in self.names}
        self._options = config
        self.transductive = config.transductive and any(
            each.unlabeled is None for each in chosen.values()
        )
        if config.limit is not None:
            self.measured_on = f"the first {config.limit} test examples of each task"
        self._tasks = {name: _KINDS[each.kind](name, each, config) for name, each in chosen.items()}

    def __getitem__(self, name: str) -> LanguageTask[Any]:
        """Return one task; raises `RecipeError` naming close matches for an unknown one."""
        if name not in self._tasks:
            raise unknown_task(name, self.names, "tasks")
        return self._tasks[name]

    def bind(self, pool: ModelPool[Any]) -> Self:
        """Return these tasks with the tokenizer, chat template and length of a pool's models."""
        prompts = Prompts.of(pool.assets(), chat=self._options.chat, length=self._options.length)
        bound = {name: replace(each, prompts=prompts) for name, each in self._tasks.items()}
        return self._with(bound)

    def identity(self, name: str) -> Mapping[str, Any]:
        """Identify a task by its files, its options, and how texts are put to the models."""
        return self[name].identity()

    def downloads(self) -> Sequence[Wanted]:
        """Return the examples on the hub that measuring reads."""
        return [wanted for task in self._tasks.values() for wanted in task.downloads()]

    def inputs(self) -> Mapping[str, Any]:
        """Identify the data sets on the hub by their commits and files."""
        tests = {name: task.data.test for name, task in self._tasks.items()}
        return {name: identities([each])[each] for name, each in tests.items() if on_hub(each)}

    def holdout(self) -> Self:
        """Return these tasks with their test lines in halves, drawn by the task's name."""
        clone = self._with({name: each.halved() for name, each in self._tasks.items()})
        clone.transductive = False
        clone.measured_on = (
            f"a half of {self.measured_on or 'the test examples'}, which adaptation did not see"
        )
        return clone

    def _with(self, tasks: Mapping[str, LanguageTask[Any]]) -> Self:
        clone = copy.copy(self)
        clone._tasks = dict(tasks)  # noqa: SLF001 - a copy of this one
        return clone


class PerplexityTasks(LanguageTasks):
    """Texts whose likelihood is measured."""

    config_class = PerplexityTasksConfig


class ChoiceTasks(LanguageTasks):
    """Questions with a few answers."""

    config_class = ChoiceTasksConfig


class GenerateTasks(LanguageTasks):
    """Questions that a model answers in its own words."""

    config_class = GenerateTasksConfig
