"""Pools of tasks whose examples are lines of files: the tasks by name."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from fusion_core import ComponentConfig, TaskPool, choose_tasks, unknown_task
from pools_lm.tasks.lines import identities, on_hub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fusion_core.hub import Wanted
    from pools_lm.tasks.config import LinesTasksConfig
    from pools_lm.tasks.examples import LinesTask


class LinesTasks(TaskPool[ComponentConfig]):
    """Tasks by name, each with files of its own.

    UNLABELED are a task's `unlabeled` lines or, where it has none, its test lines without answers:
    adapting on them is transductive. A pool that brings its own data passes the options of the pool
    that it builds on to this constructor and then sets `config` to its own. Raises `RecipeError`
    for unknown tasks.
    """

    config_class: ClassVar[type[ComponentConfig]]

    def __init__(self, config: LinesTasksConfig) -> None:
        super().__init__(config)
        self.names = choose_tasks(config.tasks, list(config.datasets), "task_pool.tasks")
        self.options: Any = config
        self.dtype = getattr(torch, config.dtype)
        self._tasks = {name: self.task(name) for name in self.names}
        self.transductive = any(each.is_transductive for each in self._tasks.values())
        if config.limit is not None:
            self.measured_on = f"the first {config.limit} test examples of each task"

    @abstractmethod
    def task(self, name: str) -> LinesTask[Any]:
        """Return a task, not bound to any models yet."""

    def __getitem__(self, name: str) -> LinesTask[Any]:
        """Return one task; raises `RecipeError` naming close matches for an unknown one."""
        if name not in self._tasks:
            raise unknown_task(name, self.names, "tasks")
        return self._tasks[name]

    def identity(self, name: str) -> Mapping[str, Any]:
        """Identify a task by its files, its options, and how texts are put to the models."""
        return self[name].identity()

    def downloads(self) -> Sequence[Wanted]:
        """Return the examples and heads on the hub that measuring reads."""
        return [wanted for task in self._tasks.values() for wanted in task.downloads()]

    def inputs(self) -> Mapping[str, Any]:
        """Identify the data sets on the hub by their commits and files."""
        tests = {name: task.data.test for name, task in self._tasks.items()}
        return {name: identities([each])[each] for name, each in tests.items() if on_hub(each)}

    def holdout(self) -> Self:
        """Return these tasks with their test lines in halves, drawn by the task's name."""
        clone = self.changed(lambda task: task.halved())
        clone.transductive = False
        clone.measured_on = (
            f"a half of {self.measured_on or 'the test examples'}, which adaptation did not see"
        )
        return clone

    def halves(self) -> tuple[Self, Self]:
        """Return these tasks measured on one half of the test lines, and on the other."""
        return self._on_half(0, "a half"), self._on_half(1, "the other half")

    def _on_half(self, number: int, said: str) -> Self:
        clone = self.changed(lambda task: task.on_half(number))
        clone.transductive = False
        clone.measured_on = f"{said} of {self.measured_on or 'the test examples'}"
        return clone

    def changed(self, change: Callable[[Any], LinesTask[Any]]) -> Self:
        """Return a copy of this pool with what becomes of each of its tasks."""
        clone = copy.copy(self)
        clone._tasks = {name: change(task) for name, task in self._tasks.items()}  # noqa: SLF001
        return clone
