"""Tasks whose examples are lines of files: splits, halves, and batches as pure functions."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from fusion_core import AdaptiveTask, Split, Task, shuffled_rows
from fusion_core.errors import RecipeError
from pools_lm.tasks.lines import identities, on_hub, read_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion_core.hub import Wanted
    from pools_lm.tasks.lines import Line

DataT = TypeVar("DataT", bound=Any)


@dataclass
class LinesTask(Task, Generic[DataT]):
    """A task whose examples are lines of files."""

    name: str
    data: DataT
    #: the pool's options
    config: Any
    #: whether UNLABELED are the first half of the test examples
    is_halved: bool = field(default=False, kw_only=True)
    #: which half of the test examples TEST is; None for all of them
    half: int | None = field(default=None, kw_only=True)

    @abstractmethod
    def look(self, line: Line) -> None:
        """Raise a `FusionError` for a line that lacks what is measured by."""

    def check(self) -> None:
        """Look at the first test example if it is here, and see that other files are there."""
        identities(self._files())
        if on_hub(self.data.test) is None:
            self.look(*read_lines(self.data.test, 1))

    def downloads(self) -> list[Wanted]:
        """Return the files on the hub that measuring reads."""
        found = map(on_hub, self.measured())
        return [each for each in found if each is not None]

    def measured(self) -> list[str]:
        """Return the files, or splits on the hub, of the examples that measuring reads."""
        return [self.data.test]

    def identity(self) -> Mapping[str, Any]:
        """Return all that the figures depend on."""
        return {
            "files": identities(self._files()),
            "data": self.data.model_dump(mode="json"),
            "limit": self.config.limit,
            "batch_size": self.config.batch_size,
            "halved": self.is_halved,
            "half": self.half,
        }

    @property
    def is_transductive(self) -> bool:
        """Whether UNLABELED lines are the test lines themselves."""
        return False

    def halved(self) -> Self:
        """Return this task with one half of its test examples as UNLABELED, the other as TEST."""
        return replace(self, is_halved=True, half=1)

    def on_half(self, number: int) -> Self:
        """Return this task with one half of its test examples as TEST; UNLABELED are no others'."""
        return replace(self, is_halved=self.is_halved or self.is_transductive, half=number)

    def lines(self, split: Split) -> list[Line]:
        """Return a split's lines; halves of the test lines where they are held out.

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
        found = read_lines(self.data.test, self.config.limit)
        rows = shuffled_rows(0, len(found), len(found), key=f"halves\0{self.name}").tolist()
        half = len(found) // 2
        return [found[n] for n in rows[:half]], [found[n] for n in rows[half:]]

    def _files(self) -> list[str]:
        return [path for split in Split if (path := getattr(self.data, split, None)) is not None]


@dataclass
class AdaptiveLinesTask(LinesTask[DataT], AdaptiveTask):
    """A task of lines that algorithms can adapt on."""

    _kept: dict[Split, list[Any]] = field(init=False, default_factory=dict)

    @abstractmethod
    def examples(self, lines: Sequence[Line], split: Split) -> list[Any]:
        """Return what lines come to; of UNLABELED ones no answer is needed."""

    @property
    def is_transductive(self) -> bool:
        """Whether UNLABELED lines are the test lines themselves."""
        is_own = self.data.unlabeled is None and not self.is_halved
        return bool(self.config.transductive) and is_own

    @property
    def hides_answers(self) -> bool:
        """Whether UNLABELED lines are test lines, whose answers must not be seen."""
        return self.is_halved or self.data.unlabeled is None

    def of(self, split: Split) -> list[Any]:
        """Return a split's examples, which are read once."""
        if split not in self._kept:
            self._kept[split] = self.examples(self.lines(split), split)
        return self._kept[split]

    def drawn(self, step: int, *, size: int, split: Split, key: str) -> list[Any]:
        """Return some of a split's examples: shuffled epochs, of the whole batches that fit.

        Raises `RecipeError` for a size that no batch can have.
        """
        found = self.of(split)
        if not 0 < size <= len(found):
            raise RecipeError(
                f"a batch of {size}: task {self.name!r} has {len(found)} {split} examples",
                hint=f"Use a batch size from 1 to {len(found)}.",
            )
        return [found[row] for row in shuffled_rows(step, size, len(found), key=key).tolist()]


def unbound(task: str) -> RecipeError:
    """Return the error for a task that is to read texts, and knows no tokenizer."""
    return RecipeError(
        f"task {task!r} knows no tokenizer: its pool is bound to no models",
        hint="Bind it: tasks = tasks.bind(pool)",
    )
