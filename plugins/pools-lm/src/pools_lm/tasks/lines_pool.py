"""The base class of task pools whose examples are lines of files."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from fusion_core import ComponentConfig, TaskPool, choose_tasks, unknown_task
from pools_lm.tasks.lines import describe_data

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fusion_core.hub import FileRequest
    from pools_lm.tasks.config import LinesTasksConfig
    from pools_lm.tasks.examples import LinesTask


class LinesTasks(TaskPool[ComponentConfig]):
    """Tasks by name, each with its own files.

    UNLABELED is a task's `unlabeled` lines. A task without them uses its test lines without
    answers, and adaptation on them is transductive. A pool that brings its own data passes the
    options of its parent class to this constructor, and then sets `config` to its own. Raises
    `RecipeError` for unknown tasks.
    """

    config_class: ClassVar[type[ComponentConfig]]

    def __init__(self, config: LinesTasksConfig) -> None:
        super().__init__(config)
        self.names = choose_tasks(config.tasks, list(config.datasets), "task_pool.tasks")
        self.options: Any = config
        self.dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
        self._tasks = {name: self.make_task(name) for name in self.names}
        self.transductive = any(task.is_transductive for task in self._tasks.values())
        if config.limit is not None:
            self.measured_on = f"the first {config.limit} test examples of each task"

    @abstractmethod
    def make_task(self, name: str) -> LinesTask[Any]:
        """Return a task that is not bound to models."""

    def __getitem__(self, name: str) -> LinesTask[Any]:
        """Return one task; raises `RecipeError` naming close matches for an unknown one."""
        if name not in self._tasks:
            raise unknown_task(name, self.names, "tasks")
        return self._tasks[name]

    def identity(self, name: str) -> Mapping[str, Any]:
        """Identify a task by its files, its options, and how the models read texts."""
        return self[name].identity()

    def downloads(self) -> Sequence[FileRequest]:
        """Return the examples and heads on the hub that evaluation reads."""
        return [wanted for task in self._tasks.values() for wanted in task.downloads()]

    def inputs(self) -> Mapping[str, Any]:
        """Identify each split: local files by their hashes, data sets on the hub by commits."""
        return {
            name: {split: describe_data(path) for split, path in task.paths.items()}
            for name, task in self._tasks.items()
        }

    def holdout(self) -> Self:
        """Return these tasks with their test lines split into halves, seeded by the task's name."""
        clone = self.map_tasks(lambda task: task.hold_out_half())
        clone.transductive = False
        clone.measured_on = (
            f"a half of {self.measured_on or 'the test examples'}, which adaptation did not see"
        )
        return clone

    def halves(self) -> tuple[Self, Self]:
        """Return these tasks measured on one half of the test lines, and on the other."""
        return self._on_half(0, "a half"), self._on_half(1, "the other half")

    def _on_half(self, number: int, title: str) -> Self:
        clone = self.map_tasks(lambda task: task.restrict_to_half(number))
        clone.transductive = False
        clone.measured_on = f"{title} of {self.measured_on or 'the test examples'}"
        return clone

    def map_tasks(self, change: Callable[[Any], LinesTask[Any]]) -> Self:
        """Return a copy of this pool with a function applied to each task."""
        clone = copy.copy(self)
        clone._tasks = {name: change(task) for name, task in self._tasks.items()}  # noqa: SLF001
        return clone
