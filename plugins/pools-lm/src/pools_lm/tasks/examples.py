"""Tasks whose examples are lines of files: splits, halves and reproducible batches."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from fusion_core import AdaptiveTask, Split, Task, shuffled_rows
from fusion_core.errors import RecipeError
from pools_lm.tasks.lines import find_on_hub, identify_data, read_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.hub import FileRequest
    from pools_lm.tasks.lines import Line

DataT = TypeVar("DataT", bound=Any)


@dataclass
class LinesTask(Task, Generic[DataT]):
    """A task whose examples are lines of files."""

    name: str
    data: DataT
    #: the pool's options
    config: Any
    #: whether UNLABELED is the first half of the test examples
    is_halved: bool = field(default=False, kw_only=True)
    #: the half of the test examples that TEST is; None for all of them
    half: int | None = field(default=None, kw_only=True)

    @abstractmethod
    def check_line(self, line: Line) -> None:
        """Raise a `FusionError` for a line without the fields that evaluation needs."""

    def check(self) -> None:
        """Check that the local files exist, and the first test example if it is local."""
        identify_data(self.paths.values())
        if find_on_hub(self.data.test) is None:
            self.check_line(*read_lines(self.data.test, 1))

    def downloads(self) -> list[FileRequest]:
        """Return the files on the hub that evaluation reads."""
        splits = map(find_on_hub, self.evaluation_data())
        return [wanted for wanted in splits if wanted is not None]

    def evaluation_data(self) -> list[str]:
        """Return the files, or splits on the hub, that evaluation reads."""
        return [self.data.test]

    def identity(self) -> Mapping[str, Any]:
        """Return everything that the metrics depend on."""
        return {
            "files": identify_data(self.paths.values()),
            "data": self.data.identity(),
            "limit": self.config.limit,
            "batch_size": self.config.batch_size,
            "halved": self.is_halved,
            "half": self.half,
        }

    @property
    def is_transductive(self) -> bool:
        """Whether the UNLABELED lines are the test lines."""
        return False

    def hold_out_half(self) -> Self:
        """Return this task with one half of its test examples as UNLABELED, the other as TEST."""
        return replace(self, is_halved=True, half=1)

    def restrict_to_half(self, number: int) -> Self:
        """Return this task with one half of its test examples as TEST.

        If UNLABELED would be the test examples, it is the first half.
        """
        return replace(self, is_halved=self.is_halved or self.is_transductive, half=number)

    def lines(self, split: Split) -> list[Line]:
        """Return the lines of a split, or the half of the test lines that stands for it.

        Raises `RecipeError` for a split that the task does not have.
        """
        if split is Split.TEST and self.half is not None:
            return self._halves()[self.half]
        if split is Split.UNLABELED and self.is_halved:
            return self._halves()[0]
        if split is Split.TEST or (split is Split.UNLABELED and self.is_transductive):
            return read_lines(self.data.test, self.config.limit)
        path = getattr(self.data, split)
        if path is None:
            raise RecipeError(
                f"task {self.name!r} has no {split} examples",
                hint=f"Name a file: task_pool.datasets.{self.name}.{split}.",
            )
        return read_lines(path)

    def _halves(self) -> tuple[list[Line], list[Line]]:
        lines = read_lines(self.data.test, self.config.limit)
        rows = shuffled_rows(0, len(lines), len(lines), key=f"halves\0{self.name}").tolist()
        half = len(lines) // 2
        return [lines[row] for row in rows[:half]], [lines[row] for row in rows[half:]]

    @property
    def paths(self) -> dict[str, str]:
        """The files, or splits on the hub, by split."""
        paths = {split.value: getattr(self.data, split, None) for split in Split}
        return {split: path for split, path in paths.items() if path is not None}


class ExampleTask(AdaptiveTask):
    """A task that holds its examples, from which it draws batches."""

    @abstractmethod
    def read_examples(self, split: Split) -> list[Any]:
        """Return the examples of a split; raise `RecipeError` for a split without any."""

    def load_examples(self, split: Split) -> list[Any]:
        """Return the examples of a split, which are read once."""
        if split not in self._examples:
            self._examples[split] = self.read_examples(split)
        return self._examples[split]

    def count(self, split: Split) -> int:
        """Return the number of examples in a split."""
        return len(self.load_examples(split))

    def draw(self, step: int, *, size: int, split: Split, key: str) -> list[Any]:
        """Return one batch of a split's examples from shuffled epochs of full batches.

        Raises `RecipeError` for a size that no batch can have.
        """
        examples = self.load_examples(split)
        if not 0 < size <= len(examples):
            raise RecipeError(
                f"invalid batch size {size}: task {self.name!r} has {len(examples)} {split} "
                "examples",
                hint=f"Use a batch size from 1 to {len(examples)}.",
            )
        rows = shuffled_rows(step, size, len(examples), key=key).tolist()
        return [examples[row] for row in rows]

    @cached_property
    def _examples(self) -> dict[Split, list[Any]]:
        return {}


@dataclass
class AdaptiveLinesTask(LinesTask[DataT], ExampleTask):
    """A task of lines that algorithms can adapt on."""

    @abstractmethod
    def examples(self, lines: Sequence[Line], split: Split) -> list[Any]:
        """Return the example of each line; UNLABELED lines need no answer."""

    def read_examples(self, split: Split) -> list[Any]:
        """Return the example of each line of a split."""
        return self.examples(self.lines(split), split)

    @property
    def is_transductive(self) -> bool:
        """Whether the UNLABELED lines are the test lines."""
        if self.data.unlabeled is None:
            return bool(self.config.transductive) and not self.is_halved
        return self._names_test_lines and not self.is_halved

    @property
    def hides_answers(self) -> bool:
        """Whether the UNLABELED lines are test lines, whose answers must stay hidden."""
        return self.is_halved or self.data.unlabeled is None or self._names_test_lines

    @property
    def _names_test_lines(self) -> bool:
        """Whether `unlabeled` names the file, or the split on the hub, of the test lines."""
        unlabeled, test = self.data.unlabeled, self.data.test
        return unlabeled == test or Path(unlabeled).resolve() == Path(test).resolve()


def unbound_error(task: str) -> RecipeError:
    """Return the error for a task that needs a tokenizer but is not bound to models."""
    return RecipeError(
        f"task {task!r} has no tokenizer, because its pool is not bound to models",
        hint="Bind it: tasks = tasks.bind(pool)",
    )
